// Every quantised block as plain integers. This is the one place of ref/ that knows bit layouts: dequantising and the
// integer products are both written on top of it.
//
//   weight i = d * scale[i / 16] * code[i] + m * offset[i / 16]
//
// All factors but d and m are integers (fractions such as the 1/8 of the IQ1 formats are moved into d, a power of two,
// exactly), so an integer kernel can sum a whole block exactly: |sum scale * code * q| < 2^28 for 8-bit q.
#pragma once

#include "kernels/format/block_formats.h"
#include "kernels/format/block_type.h"
#include "kernels/format/blocks.h"

namespace stoker::ref {

struct UnpackedBlock {
  f32 d, m;
  bool has_offset;  // else m and offset are not set
  i32 scale[16];
  i32 offset[16];
  i8 code[256];  // the first 32 for 32-weight blocks
};

void unpack(const BlockQ4_0& b, UnpackedBlock& out);
void unpack(const BlockQ4_1& b, UnpackedBlock& out);
void unpack(const BlockQ5_0& b, UnpackedBlock& out);
void unpack(const BlockQ5_1& b, UnpackedBlock& out);
void unpack(const BlockQ8_0& b, UnpackedBlock& out);
void unpack(const BlockIQ4_NL& b, UnpackedBlock& out);
void unpack(const BlockMXFP4& b, UnpackedBlock& out);
void unpack(const BlockQ2_K& b, UnpackedBlock& out);
void unpack(const BlockQ3_K& b, UnpackedBlock& out);
void unpack(const BlockQ4_K& b, UnpackedBlock& out);
void unpack(const BlockQ5_K& b, UnpackedBlock& out);
void unpack(const BlockQ6_K& b, UnpackedBlock& out);
void unpack(const BlockIQ2_XXS& b, UnpackedBlock& out);
void unpack(const BlockIQ2_XS& b, UnpackedBlock& out);
void unpack(const BlockIQ2_S& b, UnpackedBlock& out);
void unpack(const BlockIQ3_XXS& b, UnpackedBlock& out);
void unpack(const BlockIQ3_S& b, UnpackedBlock& out);
void unpack(const BlockIQ4_XS& b, UnpackedBlock& out);
void unpack(const BlockIQ1_S& b, UnpackedBlock& out);
void unpack(const BlockIQ1_M& b, UnpackedBlock& out);

}  // namespace stoker::ref
