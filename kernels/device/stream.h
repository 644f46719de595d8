// Where an op runs. On the CPU: a worker pool and the kernels of one instruction level. On a device: one of its streams,
// to which ops are posted.
#pragma once

#include <string_view>

#include "kernels/base/threads.h"

namespace stoker {

class DeviceStream;

// avx2: AVX2, FMA, F16C, BMI2 (Haswell, Zen and later). avx512: F, BW, VL, DQ, VNNI, VBMI, BITALG (Ice Lake, Zen 4 and
// later). Each level includes those before it.
enum class IsaLevel { ref, avx2, avx512 };

std::string_view name(IsaLevel level);

class Stream {
 public:
  // Throws Error when this CPU lacks the level. The pool must outlive the stream.
  Stream(WorkerPool& workers, IsaLevel level);
  // Of a device's stream, which must outlive this one. Host devices compute with the kernels of the level.
  Stream(DeviceStream& device, IsaLevel level);

  WorkerPool& workers() const { return *workers_; }  // of a CPU's
  DeviceStream& device() const { return *device_; }  // of a device's
  IsaLevel level() const { return level_; }

 private:
  WorkerPool* workers_ = nullptr;
  DeviceStream* device_ = nullptr;
  IsaLevel level_;
};

// The best level this CPU can run and this build contains.
IsaLevel best_isa_level();

}  // namespace stoker
