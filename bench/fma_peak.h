// The multiply peak of a machine: what its cores do when nothing but fused multiply-adds of floats in
// registers is asked of them. Kernels bound by arithmetic are measured against it.
#pragma once

#include "kernels/device/stream.h"

namespace stoker {

// Multiplications and additions per nanosecond (GFLOP/s) of all workers together, the best of several short
// runs. At the ref level there are no fused ones: it is measured with multiplications and additions of four
// floats.
f64 fma_peak_gflops(Stream& stream);

}  // namespace stoker
