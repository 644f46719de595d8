#include "kernels/format/block_type.h"

#include <algorithm>
#include <array>
#include <cctype>

#include "kernels/base/check.h"

namespace stoker {

static constexpr auto kTypes = std::to_array<BlockTypeInfo>({
    {BlockType::F32, "F32", 1, 4},
    {BlockType::F16, "F16", 1, 2},
    {BlockType::Q4_0, "Q4_0", 32, 18},
    {BlockType::Q4_1, "Q4_1", 32, 20},
    {BlockType::Q5_0, "Q5_0", 32, 22},
    {BlockType::Q5_1, "Q5_1", 32, 24},
    {BlockType::Q8_0, "Q8_0", 32, 34},
    {BlockType::Q2_K, "Q2_K", 256, 84},
    {BlockType::Q3_K, "Q3_K", 256, 110},
    {BlockType::Q4_K, "Q4_K", 256, 144},
    {BlockType::Q5_K, "Q5_K", 256, 176},
    {BlockType::Q6_K, "Q6_K", 256, 210},
    {BlockType::IQ2_XXS, "IQ2_XXS", 256, 66},
    {BlockType::IQ2_XS, "IQ2_XS", 256, 74},
    {BlockType::IQ3_XXS, "IQ3_XXS", 256, 98},
    {BlockType::IQ1_S, "IQ1_S", 256, 50},
    {BlockType::IQ4_NL, "IQ4_NL", 32, 18},
    {BlockType::IQ3_S, "IQ3_S", 256, 110},
    {BlockType::IQ2_S, "IQ2_S", 256, 82},
    {BlockType::IQ4_XS, "IQ4_XS", 256, 136},
    {BlockType::IQ1_M, "IQ1_M", 256, 56},
    {BlockType::BF16, "BF16", 1, 2},
    {BlockType::MXFP4, "MXFP4", 32, 17},
});

static constexpr BlockTypeInfo kBytes{BlockType::I8, "I8", 1, 1};

const BlockTypeInfo* find_block_type(u32 id) {
  for (const BlockTypeInfo& t : kTypes)
    if (static_cast<u32>(t.type) == id) return &t;
  return nullptr;
}

const BlockTypeInfo* find_block_type(std::string_view name) {
  auto same = [](char a, char b) { return std::toupper(static_cast<unsigned char>(a)) == b; };
  for (const BlockTypeInfo& t : kTypes)
    if (std::equal(name.begin(), name.end(), t.name.begin(), t.name.end(), same)) return &t;
  return nullptr;
}

const BlockTypeInfo& info(BlockType type) {
  if (type == BlockType::I8) return kBytes;
  const BlockTypeInfo* found = find_block_type(static_cast<u32>(type));
  CHECK(found != nullptr);
  return *found;
}

BlockTypeRange all_block_types() { return {kTypes.data(), kTypes.data() + kTypes.size()}; }

i64 row_bytes(BlockType type, i64 weights) {
  const BlockTypeInfo& t = info(type);
  CHECK(weights % t.block_weights == 0);
  return weights / t.block_weights * t.block_bytes;
}

}  // namespace stoker
