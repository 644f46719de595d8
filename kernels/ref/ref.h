// The parts of fill_ref(). ref/ holds the plain twin of every leaf: obvious, not fast, the definition of correct.
#pragma once

#include "kernels/cpu/leaf.h"

namespace stoker::ref {

void fill_attention(LeafTable& table);
void fill_dequantize(LeafTable& table);
void fill_matmul_f32(LeafTable& table);
void fill_matmul_q8(LeafTable& table);
void fill_quantize(LeafTable& table);
void fill_vector(LeafTable& table);

}  // namespace stoker::ref
