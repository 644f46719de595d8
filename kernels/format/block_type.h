// The block formats of GGUF tensors: ids, names and sizes (the format's definition; static_asserted in blocks.h).
#pragma once

#include <optional>
#include <string_view>

#include "kernels/base/types.h"

namespace stoker {

// The numbers are GGUF's ggml_type ids.
enum class BlockType : u32 {
  F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8,
  Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14,
  IQ2_XXS = 16, IQ2_XS = 17, IQ3_XXS = 18, IQ1_S = 19, IQ4_NL = 20, IQ3_S = 21, IQ2_S = 22, IQ4_XS = 23,
  I8 = 24,  // bytes that are no weights: packed experts; no arithmetic exists for it
  IQ1_M = 29, BF16 = 30, MXFP4 = 39,
};

// Upper limit of ids, for tables indexed by static_cast<i64>(BlockType).
constexpr i64 kBlockTypeLimit = 40;

struct BlockTypeInfo {
  BlockType type;
  std::string_view name;  // "Q4_K"
  i64 block_weights;      // weights per block: 1, 32 or 256
  i64 block_bytes;
};

// nullptr when this id is not one stoker computes with (so it is for I8).
const BlockTypeInfo* find_block_type(u32 id);
const BlockTypeInfo* find_block_type(std::string_view name);  // upper or lower case
const BlockTypeInfo& info(BlockType type);

// Every type but I8, ascending by id.
struct BlockTypeRange {
  const BlockTypeInfo* first;
  const BlockTypeInfo* last;
  const BlockTypeInfo* begin() const { return first; }
  const BlockTypeInfo* end() const { return last; }
};
BlockTypeRange all_block_types();

// Bytes of a row of `weights` weights; weights must be a multiple of block_weights (CHECK).
i64 row_bytes(BlockType type, i64 weights);

}  // namespace stoker
