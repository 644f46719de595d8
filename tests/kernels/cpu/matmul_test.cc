// The matrix products of each instruction level against their plain twins, over the list in matmul_cases.h.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>
#include <cstring>

#include "kernels/format/blocks.h"
#include "tests/kernels/cpu/matmul_cases.h"
#include "tests/support/canary.h"

using namespace stoker;
using namespace stoker::test;

// Another seed finds other cases: -DSTOKER_TEST_SEED=... when building this file.
#ifndef STOKER_TEST_SEED
#define STOKER_TEST_SEED 20240917
#endif
static constexpr u64 kSeed = STOKER_TEST_SEED;

static MatmulLeaf leaf(const LeafTable& table, const MatmulCase& c) {
  i64 type = static_cast<i64>(c.type);
  return c.exact ? table.matmul_f32[type] : table.matmul_q8[type];
}

// nullptr where a level has none for this case.
static MatmulLeaf gemm_leaf(const LeafTable& table, const MatmulCase& c) {
  i64 type = static_cast<i64>(c.type);
  return c.exact ? table.gemm_f32[type] : table.gemm_q8[type];
}

static bool can_run(IsaLevel level) {
  if (best_isa_level() >= level) return true;
  std::printf("skipped: this CPU has no %s\n", std::string(name(level)).c_str());
  return false;
}

static CanaryBuffer<f32> make_output(const MatmulCase& c, const MatmulData& data) {
  CanaryBuffer<f32> y(data.output_rows() * data.output_stride());
  for (i64 t = 0; t < c.tokens; t++)
    for (i64 r = 0; r < c.rows; r++) y.expect_write(data.output_row(t) * data.output_stride() + r);
  return y;
}

// The worst element of a comparison, as a share of what it may be off.
struct Worst {
  f64 share = -1;
  i64 token = 0, row = 0;
  f32 expected = 0, got = 0;
};

static Worst worst_of(const MatmulCase& c, MatmulData& data, const f32* expected, const f32* got) {
  Worst worst;
  for (i64 r = 0; r < c.rows; r++)
    for (i64 t = 0; t < c.tokens; t++) {
      i64 at = data.output_row(t) * data.output_stride() + r;
      f64 off = std::abs(static_cast<f64>(expected[at]) - static_cast<f64>(got[at]));
      // Each of the two may be off by the tolerance. An infinite or NaN result is never right here.
      f64 share = off == 0 ? 0 : off / (2 * data.tolerance(t, r));
      if (!std::isfinite(got[at]) || !std::isfinite(expected[at])) share = INFINITY;
      if (share > worst.share) worst = {share, t, r, expected[at], got[at]};
    }
  return worst;
}

// What avx512 does not overlay is avx2's, and is compared again under the other name.
static void compare_with_twin(IsaLevel level) {
  if (!can_run(level)) return;
  const LeafTable& ref = leaf_table(IsaLevel::ref);
  const LeafTable& fast = leaf_table(level);
  u64 seed = kSeed;
  for (const MatmulCase& c : matmul_cases()) {
    INFO(c.name() << ", seed " << ++seed);
    REQUIRE((leaf(ref, c) != nullptr));
    REQUIRE((leaf(fast, c) != leaf(ref, c)));
    MatmulData data(c, seed);
    CanaryBuffer<f32> expected = make_output(c, data), got = make_output(c, data);
    MatmulTile tile = data.tile();
    tile.y = expected.data();
    leaf(ref, c)(tile);
    tile.y = got.data();
    leaf(fast, c)(tile);
    CHECK(expected.first_damaged() == CanaryBuffer<f32>::kNone);
    CHECK(got.first_damaged() == CanaryBuffer<f32>::kNone);
    Worst worst = worst_of(c, data, expected.data(), got.data());
    CHECK_MESSAGE(worst.share <= 1.0, "worst element: token " << worst.token << " row " << worst.row << " is "
                                                              << worst.got << " instead of " << worst.expected
                                                              << ", " << worst.share
                                                              << " times the tolerance");
  }
}

TEST_CASE("every AVX2 matrix product agrees with its plain twin") { compare_with_twin(IsaLevel::avx2); }
TEST_CASE("every AVX-512 matrix product agrees with its plain twin") { compare_with_twin(IsaLevel::avx512); }

static void compare_with_itself_alone(IsaLevel level) {
  if (!can_run(level)) return;
  const LeafTable& fast = leaf_table(level);
  u64 seed = kSeed;
  for (const MatmulCase& c : matmul_cases()) {
    if (c.fill != Fill::random) continue;
    INFO(c.name() << ", seed " << ++seed);
    MatmulData data(c, seed);
    CanaryBuffer<f32> together = make_output(c, data);
    MatmulTile tile = data.tile();
    tile.y = together.data();
    leaf(fast, c)(tile);
    i64 different = 0;
    for (i64 t = 0; t < c.tokens; t++)
      for (i64 r = 0; r < c.rows; r++) {
        f32 alone = 0;
        i32 zero = 0;
        MatmulTile one = data.tile();
        one.w += r * one.w_row_bytes;
        one.x += (one.x_rows != nullptr ? one.x_rows[t] : t) * one.x_stride_bytes;
        one.x_rows = nullptr;
        one.y_rows = c.scattered ? &zero : nullptr;
        one.rows = one.tokens = 1;
        one.y = &alone;
        leaf(fast, c)(one);
        i64 at = data.output_row(t) * data.output_stride() + r;
        different += std::memcmp(&alone, together.data() + at, sizeof alone) != 0;
      }
    CHECK(different == 0);
  }
}

TEST_CASE("an AVX2 result depends on its own row and token only, bit for bit") {
  compare_with_itself_alone(IsaLevel::avx2);
}
TEST_CASE("an AVX-512 result depends on its own row and token only, bit for bit") {
  compare_with_itself_alone(IsaLevel::avx512);
}

// A GEMM may be chosen by the size of a batch, so it must not show: not even where numbers are extreme.
static void compare_gemm_with_leaf(IsaLevel level) {
  if (!can_run(level)) return;
  const LeafTable& fast = leaf_table(level);
  u64 seed = kSeed;
  for (const MatmulCase& c : matmul_cases()) {
    INFO(c.name() << ", seed " << ++seed);
    if (gemm_leaf(fast, c) == nullptr) {
      // Exact arithmetic has none, and the avx512 leaves of linear formats are their own: they take eight tokens at once.
      CHECK((c.exact || level == IsaLevel::avx512));
      continue;
    }
    MatmulData data(c, seed);
    CanaryBuffer<f32> expected = make_output(c, data), got = make_output(c, data);
    MatmulTile tile = data.tile();
    tile.y = expected.data();
    leaf(fast, c)(tile);
    tile.y = got.data();
    gemm_leaf(fast, c)(tile);
    CHECK(got.first_damaged() == CanaryBuffer<f32>::kNone);
    i64 different = 0;
    for (i64 t = 0; t < c.tokens; t++) {
      i64 row = data.output_row(t) * data.output_stride();
      for (i64 r = 0; r < c.rows; r++)
        different += std::memcmp(expected.data() + row + r, got.data() + row + r, sizeof(f32)) != 0;
    }
    CHECK(different == 0);
  }
}

TEST_CASE("an AVX2 GEMM gives the bits of the leaf for few tokens") { compare_gemm_with_leaf(IsaLevel::avx2); }
TEST_CASE("an AVX-512 GEMM gives the bits of the leaf for few tokens") { compare_gemm_with_leaf(IsaLevel::avx512); }

TEST_CASE("the tolerance of the comparison notices one wrong code in one weight") {
  // Guards the test above: were its bound too wide, it could not fail.
  const LeafTable& ref = leaf_table(IsaLevel::ref);
  for (const MatmulCase& c : {MatmulCase{BlockType::Q4_K, false, 1, 1280, 1, Fill::random, false},
                              MatmulCase{BlockType::IQ1_S, false, 1, 1280, 1, Fill::random, false},
                              MatmulCase{BlockType::Q8_0, false, 1, 32, 1, Fill::random, false}}) {
    INFO(c.name());
    MatmulData data(c, kSeed);
    CanaryBuffer<f32> expected = make_output(c, data), got = make_output(c, data);
    MatmulTile tile = data.tile();
    tile.y = expected.data();
    leaf(ref, c)(tile);
    std::vector<std::byte> weights(tile.w, tile.w + tile.w_row_bytes);
    // The lowest bit of a byte of codes: one step of one 4- or 8-bit code, or another code book entry.
    size_t byte = c.type == BlockType::Q4_K ? offsetof(BlockQ4_K, qs) + 5 : 7;
    weights[byte] ^= std::byte{1};
    tile.w = weights.data();
    tile.y = got.data();
    leaf(ref, c)(tile);
    CHECK(worst_of(c, data, expected.data(), got.data()).share > 1.0);
  }
}
