// The formats that have blocks, as types: the one list that kernels, twins and tests make their cases from.
#pragma once

#include "kernels/format/block_type.h"
#include "kernels/format/blocks.h"

namespace stoker {

// Calls f.template operator()<Block>(BlockType) for each format that has blocks.
template <class F>
constexpr void for_each_block_format(F&& f) {
  f.template operator()<BlockQ4_0>(BlockType::Q4_0);
  f.template operator()<BlockQ4_1>(BlockType::Q4_1);
  f.template operator()<BlockQ5_0>(BlockType::Q5_0);
  f.template operator()<BlockQ5_1>(BlockType::Q5_1);
  f.template operator()<BlockQ8_0>(BlockType::Q8_0);
  f.template operator()<BlockIQ4_NL>(BlockType::IQ4_NL);
  f.template operator()<BlockMXFP4>(BlockType::MXFP4);
  f.template operator()<BlockQ2_K>(BlockType::Q2_K);
  f.template operator()<BlockQ3_K>(BlockType::Q3_K);
  f.template operator()<BlockQ4_K>(BlockType::Q4_K);
  f.template operator()<BlockQ5_K>(BlockType::Q5_K);
  f.template operator()<BlockQ6_K>(BlockType::Q6_K);
  f.template operator()<BlockIQ2_XXS>(BlockType::IQ2_XXS);
  f.template operator()<BlockIQ2_XS>(BlockType::IQ2_XS);
  f.template operator()<BlockIQ2_S>(BlockType::IQ2_S);
  f.template operator()<BlockIQ3_XXS>(BlockType::IQ3_XXS);
  f.template operator()<BlockIQ3_S>(BlockType::IQ3_S);
  f.template operator()<BlockIQ4_XS>(BlockType::IQ4_XS);
  f.template operator()<BlockIQ1_S>(BlockType::IQ1_S);
  f.template operator()<BlockIQ1_M>(BlockType::IQ1_M);
}

}  // namespace stoker
