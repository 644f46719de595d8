// What GPU kernels compute with, on the CPU: the packed order has an inverse, and every block decodes to the integers and
// the floats of the twins, bit for bit.
#include <doctest/doctest.h>

#include <bit>
#include <cstring>
#include <fstream>
#include <vector>

#include "kernels/cpu/leaf.h"
#include "kernels/format/decode.h"
#include "kernels/format/packed_load.h"
#include "kernels/format/random_blocks.h"
#include "kernels/ref/unpack.h"
#include "tests/support/canary.h"
#include "tests/support/shared_data.h"

using namespace stoker;
using namespace stoker::test;

namespace {

struct Rows {
  BlockType type;
  i64 rows, cols;
  std::vector<std::byte> file;
};

// Every byte random: scales may be infinite or no number.
Rows random_rows(BlockType type, i64 rows, i64 cols, u64 seed) {
  Rows r{type, rows, cols, std::vector<std::byte>(static_cast<size_t>(rows * row_bytes(type, cols)))};
  Rng rng(seed);
  for (std::byte& b : r.file) b = static_cast<std::byte>(rng.next() >> 56);
  return r;
}

std::vector<std::byte> pack(const Rows& r) {
  std::vector<std::byte> packed(static_cast<size_t>(packed_bytes(r.type, r.rows, r.cols)), std::byte{0xee});
  pack_rows(r.type, r.rows, r.cols, r.file.data(), packed.data());
  return packed;
}

// The same integers as the twin's.
template <class Block>
i64 wrong_integers(const Block& block, const u32* w) {
  ref::UnpackedBlock want;
  ref::unpack(block, want);
  const u32* book = decode_books().data() + Decode<Block>::kBook.first;
  i64 wrong = want.has_offset != Decode<Block>::kHasOffset;
  for (i64 g = 0; g < Block::kWeights / 32; g++) {
    WeightGroup group{};
    Decode<Block>::group(w, static_cast<int>(g), book, group);
    for (i64 i = 0; i < 32; i++)
      wrong += static_cast<i8>(group.code[i / 4] >> (8 * (i % 4))) - Decode<Block>::kBias != want.code[32 * g + i];
    for (i64 h = 0; h < 2 && Block::kWeights == 256; h++) {
      wrong += group.scale[h] != want.scale[2 * g + h];
      if (want.has_offset) wrong += group.offset[h] != want.offset[2 * g + h];
    }
  }
  return wrong;
}

// The weights of a block by the formula at the top of decode.h.
template <class Block>
void decode_block(const u32* w, f32* out) {
  using D = Decode<Block>;
  for (i64 g = 0; g < Block::kWeights / 32; g++) {
    WeightGroup group{.code = {}, .scale = {1, 1}, .offset = {1, 1}};
    D::group(w, static_cast<int>(g), decode_books().data() + D::kBook.first, group);
    for (i64 i = 0; i < 32; i++) {
      i32 code = static_cast<i8>(group.code[i / 4] >> (8 * (i % 4))) - D::kBias;
      f32 value = D::d(w) * static_cast<f32>(group.scale[i / 16]) * static_cast<f32>(code);
      out[32 * g + i] = D::kHasOffset ? value + D::m(w) * static_cast<f32>(group.offset[i / 16]) : value;
    }
  }
}

template <class Block>
void check_rows(const Rows& r) {
  CAPTURE(std::string(info(r.type).name));
  const std::vector<std::byte> packed = pack(r);
  const i64 blocks = r.cols / Block::kWeights;
  std::vector<f32> got(static_cast<size_t>(r.rows * r.cols)), want(got.size());
  i64 wrong = 0;
  for (i64 row = 0; row < r.rows; row++)
    for (i64 b = 0; b < blocks; b++) {
      u32 w[kBlockWords<Block>];
      i64 tile = (row / kPackedRows * blocks + b) * kPackedRows * i64{sizeof(Block)};
      load_block<Block>(packed.data() + tile, row % kPackedRows, w);
      Block block;
      std::memcpy(&block, r.file.data() + (row * blocks + b) * i64{sizeof(Block)}, sizeof block);
      wrong += wrong_integers(block, w);
      decode_block<Block>(w, got.data() + row * r.cols + b * Block::kWeights);
    }
  CHECK(wrong == 0);
  leaf_table(IsaLevel::ref).dequantize[static_cast<i64>(r.type)](r.file.data(), want.data(), r.rows * r.cols);
  i64 unequal = 0;
  for (size_t i = 0; i < want.size(); i++) unequal += std::bit_cast<u32>(got[i]) != std::bit_cast<u32>(want[i]);
  CHECK(unequal == 0);
}

}  // namespace

TEST_CASE("the packed order and its inverse keep every bit of every format, whole tiles or not") {
  for (const BlockTypeInfo& type : all_block_types())
    for (i64 rows : {1, 31, 32, 33, 96}) {
      CAPTURE(std::string(type.name));
      CAPTURE(rows);
      const Rows r = random_rows(type.type, rows, 768, 7);
      const std::vector<std::byte> packed = pack(r);
      CanaryBuffer<std::byte> back(static_cast<i64>(r.file.size()));
      for (i64 i = 0; i < back.count(); i++) back.expect_write(i);
      unpack_rows(type.type, rows, 768, packed.data(), back.data());
      CHECK(std::memcmp(back.data(), r.file.data(), r.file.size()) == 0);
      CHECK(back.first_damaged() == CanaryBuffer<std::byte>::kNone);
      if (type.block_weights > 1 && rows > 1) CHECK(std::memcmp(packed.data(), r.file.data(), r.file.size()) != 0);
    }
}

TEST_CASE("rows that a tile lacks are zero, and nothing is written beyond the tile") {
  const Rows r = random_rows(BlockType::IQ2_XXS, 33, 256, 8);
  CanaryBuffer<std::byte> packed(packed_bytes(r.type, r.rows, r.cols));
  for (i64 i = 0; i < packed.count(); i++) packed.expect_write(i);
  pack_rows(r.type, r.rows, r.cols, r.file.data(), packed.data());
  CHECK(packed.first_damaged() == CanaryBuffer<std::byte>::kNone);
  for (i64 i = 1; i < 32; i++) {
    u32 w[kBlockWords<BlockIQ2_XXS>];
    load_block<BlockIQ2_XXS>(packed.data() + 32 * i64{sizeof(BlockIQ2_XXS)}, i, w);
    for (u32 word : w) CHECK(word == 0);
  }
}

TEST_CASE("packed blocks decode to the twins' integers and floats") {
  for_each_block_format([]<class Block>(BlockType type) {
    Rows finite{type, 35, 512, {}};
    finite.file.resize(static_cast<size_t>(finite.rows * row_bytes(type, finite.cols)));
    Rng rng(3);
    fill_random_blocks(type, finite.rows * finite.cols / Block::kWeights, 0.02f, rng, finite.file.data());
    check_rows<Block>(finite);
  });
}

TEST_CASE("packed blocks of random bits decode to the twins' integers") {
  for_each_block_format([]<class Block>(BlockType type) {
    CAPTURE(std::string(info(type).name));
    const Rows r = random_rows(type, 64, 1024, 11);
    i64 wrong = 0;
    for (i64 i = 0; i < static_cast<i64>(r.file.size() / sizeof(Block)); i++) {
      Block block;
      std::memcpy(&block, r.file.data() + i * i64{sizeof block}, sizeof block);
      std::vector<std::byte> packed(32 * sizeof block);
      pack_rows(type, 1, Block::kWeights, reinterpret_cast<const std::byte*>(&block), packed.data());
      u32 w[kBlockWords<Block>];
      load_block<Block>(packed.data(), 0, w);
      wrong += wrong_integers(block, w);
    }
    CHECK(wrong == 0);
  });
}

TEST_CASE("the reference rows of all block formats decode exactly when packed") {
  if (shared_file("data/quants/manifest.tsv").empty()) return;
  i64 formats = 0;
  for_each_block_format([&]<class Block>(BlockType type) {
    const std::string path = shared_file("data/quants/" + std::string(info(type).name) + ".blocks");
    std::ifstream in(path, std::ios::binary);
    Rows r{type, 12, 1024, std::vector<std::byte>(static_cast<size_t>(12 * row_bytes(type, 1024)))};
    in.read(reinterpret_cast<char*>(r.file.data()), static_cast<std::streamsize>(r.file.size()));
    REQUIRE(in.good());
    check_rows<Block>(r);
    std::vector<f32> want(12 * 1024), got(want.size());
    std::ifstream floats(path.substr(0, path.size() - 6) + "f32", std::ios::binary);
    floats.read(reinterpret_cast<char*>(want.data()), static_cast<std::streamsize>(want.size() * sizeof(f32)));
    REQUIRE(floats.good());
    const std::vector<std::byte> packed = pack(r);
    i64 blocks = r.cols / Block::kWeights, unequal = 0;
    for (i64 row = 0; row < r.rows; row++)
      for (i64 b = 0; b < blocks; b++) {
        u32 w[kBlockWords<Block>];
        load_block<Block>(packed.data() + b * kPackedRows * i64{sizeof(Block)}, row, w);
        decode_block<Block>(w, got.data() + row * r.cols + b * Block::kWeights);
      }
    // Zeros may differ in sign, as in the twins' own test.
    for (size_t i = 0; i < want.size(); i++) unequal += !(got[i] == want[i]);
    CAPTURE(std::string(info(type).name));
    CHECK(unequal == 0);
    formats++;
  });
  CHECK(formats == 20);
}
