#include "kernels/cpu/host_device_ops.h"

#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/device/host_device.h"
#include "kernels/device/stream.h"

namespace stoker {

namespace {

HostDeviceStream& host_stream(Stream& stream) { return static_cast<HostDeviceStream&>(stream.device()); }

// The bytes behind an address of the device that an argument holds.
template <class T>
T* real(const HostDeviceStream& stream, T* address) {
  if (address == nullptr) return nullptr;
  return reinterpret_cast<T*>(stream.real({reinterpret_cast<u64>(address)}));
}

i64 matrix_bytes(const Matrix& m) { return m.rows * row_bytes(m.type, m.cols); }

void quantize(Stream& stream, const QuantizeArgs& args) {
  HostDeviceStream& host = host_stream(stream);
  IsaLevel level = stream.level();
  HostWork work([&host, level, args] {
    Stream cpu(host.workers(), level);
    QuantizeArgs here = args;
    here.x = real(host, args.x);
    here.out = real(host, args.out);
    cpu::quantize(cpu, here);
  });
  host.post(work, args.rows * args.cols * i64{sizeof(f32)});
}

void expert_ffn(Stream& stream, const ExpertFfnArgs& args) {
  HostDeviceStream& host = host_stream(stream);
  IsaLevel level = stream.level();
  HostWork work([&host, level, args] {
    Stream cpu(host.workers(), level);
    ExpertFfnArgs here = args;
    here.x = real(host, args.x);
    here.x_q8_32 = real(host, args.x_q8_32);
    here.x_q8_256 = real(host, args.x_q8_256);
    here.out = real(host, args.out);
    here.scratch = real(host, args.scratch);
    // Grows in the first calls of a stream's thread and is then as long as a layer's list can be.
    thread_local std::vector<ExpertWork> list;
    list.assign(args.work.begin(), args.work.end());
    for (ExpertWork& w : list) {
      for (Matrix* m : {&w.gate, &w.up, &w.down}) m->data = real(host, m->data);
      w.rows = real(host, w.rows);
      w.out_rows = real(host, w.out_rows);
    }
    here.work = list;
    cpu::expert_ffn(cpu, here);
  });
  i64 bytes = 0;
  for (const ExpertWork& w : args.work) bytes += matrix_bytes(w.gate) + matrix_bytes(w.up) + matrix_bytes(w.down);
  host.post(work, bytes);
}

}  // namespace

const Ops& host_device_ops() {
  static constexpr Ops kOps{.name = "host device",
                            .quantize = quantize,
                            .matmul = nullptr,
                            .head_matmul = nullptr,
                            .rms_norm = nullptr,
                            .rope = nullptr,
                            .expert_ffn = expert_ffn,
                            .latent_attention = nullptr,
                            .prompt_attention = nullptr,
                            .route = nullptr,
                            .combine = nullptr,
                            .add = nullptr,
                            .store_latents = nullptr,
                            .dequantize = nullptr};
  return kOps;
}

}  // namespace stoker
