// CUDA's table of ops.
//
// As kernels/ops.h says of devices, and: activations of the 8-bit forms are as kernels/cuda/activation_rows.h says. There is no exact arithmetic: `exact`, float
// activations for block formats and caches of F32 throw Error, and so does the first op for a card that has no room for
// the code books. Latent rows have at most 512 + rope values.
#pragma once

#include "kernels/ops.h"

namespace stoker {

// Throws Error in a build without CUDA, where there is no card to ask for either.
const Ops& cuda_ops();

}  // namespace stoker
