// CUDA's table of ops, in builds that have CUDA.
//
// As kernels/ops.h says of devices, and: matrices of block formats are in the packed order (kernels/format/packed.h,
// cuda_pack), those of HeadMatmulArgs and PromptAttentionArgs head by head. Activations of the 8-bit forms are as
// kernels/cuda/activation_rows.h says, rows card_row_bytes() apart wherever ops.h says activation_row_bytes(). There is no exact arithmetic: `exact`, float activations for block formats and
// caches of F32 throw Error. Latent rows have at most 512 + rope values.
#pragma once

#include "kernels/ops.h"

namespace stoker {

const Ops& cuda_ops();

// A matrix of a block format from the file's order, [rows] rows of row_bytes(), into the packed one, packed_bytes(); both
// on the card, not overlapping, `from` at any address. Formats without blocks need none of this.
void cuda_pack(Stream& stream, BlockType type, i64 rows, i64 cols, const void* from, void* to);

}  // namespace stoker
