#include "kernels/device/stream.h"

#include <cpuid.h>

#include "kernels/base/error.h"

namespace stoker {

std::string_view name(IsaLevel level) {
  switch (level) {
    case IsaLevel::ref: return "ref";
    case IsaLevel::avx2: return "avx2";
    case IsaLevel::avx512: return "avx512";
  }
  return "?";
}

// __builtin_cpu_supports() of clang 14 does not know it.
static bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

// What the levels' libraries are compiled with (kernels/cpu/meson.build).
static IsaLevel detect_isa_level() {
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
              has_f16c();
  if (!avx2) return IsaLevel::ref;
  bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
                __builtin_cpu_supports("avx512bitalg");
  return avx512 ? IsaLevel::avx512 : IsaLevel::avx2;
}

// Asked for by every op. CPUID leaves a virtual machine each time, which took half of a small model's decode.
IsaLevel best_isa_level() {
  static const IsaLevel level = detect_isa_level();
  return level;
}

static IsaLevel checked(IsaLevel level) {
  if (level > best_isa_level())
    fail("instruction level '{}' cannot run here; the best is '{}' (--isa)", name(level), name(best_isa_level()));
  return level;
}

Stream::Stream(WorkerPool& workers, IsaLevel level) : workers_(&workers), level_(checked(level)) {}
Stream::Stream(DeviceStream& device, IsaLevel level) : device_(&device), level_(checked(level)) {}

}  // namespace stoker
