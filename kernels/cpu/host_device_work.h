// What the host devices' ops share: how work gets into a stream's thread and finds its bytes there.
#pragma once

#include "kernels/device/host_device.h"
#include "kernels/device/stream.h"
#include "kernels/ops.h"

namespace stoker::host_device {

inline HostDeviceStream& host_stream(Stream& stream) { return static_cast<HostDeviceStream&>(stream.device()); }

// The bytes behind an address of the device that an argument holds.
template <class T>
T* real(const HostDeviceStream& stream, T* address) {
  if (address == nullptr) return nullptr;
  return reinterpret_cast<T*>(stream.real({reinterpret_cast<u64>(address)}));
}

// compute(stream of the CPU, host stream, args), in the stream's thread. `args` have the device's addresses still.
template <class Args, class Compute>
void post(Stream& stream, const Args& args, i64 read_bytes, Compute compute) {
  HostDeviceStream& host = host_stream(stream);
  IsaLevel level = stream.level();
  HostWork work([&host, level, args, compute] {
    Stream cpu(host.workers(), level);
    compute(cpu, host, args);
  });
  host.post(work, read_bytes);
}

inline i64 matrix_bytes(const Matrix& m) { return m.rows * row_bytes(m.type, m.cols); }

// Ops around attention, with matrices in the file's order and in the packed one (host_device_attention.cc).
void add_attention(Ops& ops, bool packed);

}  // namespace stoker::host_device
