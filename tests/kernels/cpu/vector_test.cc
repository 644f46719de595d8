// The element-wise leaves, the sums and the 8-bit quantisation of every level against f64 arithmetic.
// Tolerances count roundings: a sum of n products in any order is off by at most (n + 1) half units of the
// sum of magnitudes; an exponential may be off by kExpError, the bound stated beside its polynomial plus the
// rounding of its argument's reduction.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/base/rng.h"
#include "kernels/cpu/leaf.h"
#include "kernels/format/f16.h"
#include "tests/kernels/cpu/levels.h"
#include "tests/support/canary.h"

using namespace stoker;
using namespace stoker::test;

static constexpr u64 kSeed = 20240918;
static constexpr i64 kSizes[] = {1, 2, 7, 8, 9, 15, 31, 32, 33, 63, 100, 256, 1000, 7168};
// Series 1e-8, nine roundings of Horner's scheme, the product with the power of two.
static constexpr f64 kExpError = 1e-8 + 10 * kHalfUlp;

enum class Content { normal, zeros, outliers, tiny };
static constexpr Content kContents[] = {Content::normal, Content::zeros, Content::outliers, Content::tiny};

static std::vector<f32> values(Content content, i64 count, u64 seed) {
  Rng rng(seed);
  std::vector<f32> x(static_cast<size_t>(count));
  for (size_t i = 0; i < x.size(); i++) {
    f64 v = content == Content::zeros ? 0.0 : rng.normal();
    if (content == Content::outliers && i % 13 == 5) v *= 1e4;
    if (content == Content::tiny) v *= 1e-20;
    x[i] = static_cast<f32>(v);
  }
  return x;
}

// Calls f(leaves, content, count, seed) for all of them.
template <class F>
static void for_all(F f) {
  u64 seed = kSeed;
  for (IsaLevel level : levels())
    for (Content content : kContents)
      for (i64 count : kSizes) {
        INFO(name(level) << ", content " << static_cast<int>(content) << ", count " << count << ", seed "
                         << ++seed);
        f(leaf_table(level), content, count, seed);
      }
}

template <class T>
static CanaryBuffer<T> output(i64 count) {
  CanaryBuffer<T> y(count);
  for (i64 i = 0; i < count; i++) y.expect_write(i);
  return y;
}

static constexpr i64 kUndamaged = CanaryBuffer<f32>::kNone;

// `got` must be within tolerance(i) of expected(i); reports the worst element.
template <class Expected, class Tolerance>
static void check_close(const f32* got, i64 count, Expected expected, Tolerance tolerance) {
  f64 worst = -1;
  i64 at = 0;
  for (i64 i = 0; i < count; i++) {
    f64 off = std::abs(static_cast<f64>(got[i]) - expected(i));
    // Below the normal range a rounding is absolute.
    f64 share = off == 0 ? 0 : off / (tolerance(i) + 0x1p-149);
    if (!(share <= worst)) worst = share, at = i;
  }
  CHECK_MESSAGE(worst <= 1.0, "element " << at << " is " << got[at] << " instead of " << expected(at) << ", "
                                         << worst << " times the tolerance");
}

TEST_CASE("dot products are within the error of their sum") {
  for_all([](const LeafTable& leaves, Content content, i64 count, u64 seed) {
    std::vector<f32> a = values(content, count, seed), b = values(Content::normal, count, ~seed);
    f64 sum = 0, magnitude = 0;
    for (size_t i = 0; i < a.size(); i++) {
      f64 product = static_cast<f64>(a[i]) * static_cast<f64>(b[i]);
      sum += product;
      magnitude += std::abs(product);
    }
    f32 got = leaves.dot(a.data(), b.data(), count);
    check_close(
        &got, 1, [&](i64) { return sum; },
        [&](i64) { return static_cast<f64>(count + 1) * kHalfUlp * magnitude; });
  });
}

TEST_CASE("a norm divides by the root of the mean square, in place too") {
  for_all([](const LeafTable& leaves, Content content, i64 count, u64 seed) {
    std::vector<f32> x = values(content, count, seed), weight = values(Content::normal, count, ~seed);
    f64 squares = 0;
    for (f32 v : x) squares += static_cast<f64>(v) * static_cast<f64>(v);
    f64 factor = 1 / std::sqrt(squares / static_cast<f64>(count) + 1e-6);
    CanaryBuffer<f32> y = output<f32>(count);
    leaves.rms_norm(x.data(), weight.data(), y.data(), count, 1e-6f);
    CHECK(y.first_damaged() == kUndamaged);
    auto expected = [&](i64 i) {
      size_t at = static_cast<size_t>(i);
      return static_cast<f64>(x[at]) * factor * static_cast<f64>(weight[at]);
    };
    // The sum of squares, its root and quotient, epsilon's own f32, two products.
    check_close(y.data(), count, expected,
                [&](i64 i) { return static_cast<f64>(count + 8) * kHalfUlp * std::abs(expected(i)); });
    std::vector<f32> in_place = x;
    leaves.rms_norm(in_place.data(), weight.data(), in_place.data(), count, 1e-6f);
    CHECK(std::memcmp(in_place.data(), y.data(), sizeof(f32) * x.size()) == 0);
  });
}

TEST_CASE("silu of the gate times up") {
  for_all([](const LeafTable& leaves, Content content, i64 count, u64 seed) {
    std::vector<f32> gate = values(content, count, seed), up = values(Content::normal, count, ~seed);
    for (size_t i = 0; i < gate.size(); i += 3) gate[i] *= 10;
    CanaryBuffer<f32> y = output<f32>(count);
    leaves.silu_mul(gate.data(), up.data(), y.data(), count);
    CHECK(y.first_damaged() == kUndamaged);
    auto expected = [&](i64 i) {
      f64 g = static_cast<f64>(gate[static_cast<size_t>(i)]);
      return g / (1 + std::exp(-g)) * static_cast<f64>(up[static_cast<size_t>(i)]);
    };
    // Where e^-x leaves the range of floats, the quotient is below 1e-38 of |x up|: nothing.
    auto tolerance = [&](i64 i) {
      f64 product = std::abs(static_cast<f64>(gate[static_cast<size_t>(i)]) *
                             static_cast<f64>(up[static_cast<size_t>(i)]));
      return (kExpError + 4 * kHalfUlp) * std::abs(expected(i)) + 1e-37 * product;
    };
    check_close(y.data(), count, expected, tolerance);
  });
}

TEST_CASE("add, add_scaled and scale round each element once or twice") {
  for_all([](const LeafTable& leaves, Content content, i64 count, u64 seed) {
    std::vector<f32> x = values(content, count, seed), y0 = values(Content::normal, count, ~seed);
    const f32 a = 0.37f;
    auto run = [&](auto op, auto expected, auto magnitude) {
      CanaryBuffer<f32> y = output<f32>(count);
      std::memcpy(y.data(), y0.data(), sizeof(f32) * y0.size());
      op(y.data());
      CHECK(y.first_damaged() == kUndamaged);
      check_close(y.data(), count, expected, [&](i64 i) { return 2 * kHalfUlp * magnitude(i); });
    };
    auto xv = [&](i64 i) { return static_cast<f64>(x[static_cast<size_t>(i)]); };
    auto yv = [&](i64 i) { return static_cast<f64>(y0[static_cast<size_t>(i)]); };
    const f64 factor = static_cast<f64>(a);
    run([&](f32* y) { leaves.add(y, x.data(), count); }, [&](i64 i) { return yv(i) + xv(i); },
        [&](i64 i) { return std::abs(yv(i)) + std::abs(xv(i)); });
    run([&](f32* y) { leaves.add_scaled(y, x.data(), a, count); },
        [&](i64 i) { return yv(i) + factor * xv(i); },
        [&](i64 i) { return std::abs(yv(i)) + std::abs(factor * xv(i)); });
    run([&](f32* y) { leaves.scale(y, a, count); }, [&](i64 i) { return factor * yv(i); },
        [&](i64 i) { return std::abs(factor * yv(i)); });
  });
}

TEST_CASE("an element of add_scaled has the same bits wherever it stands") {
  for (IsaLevel level : levels()) {
    const LeafTable& leaves = leaf_table(level);
    for (i64 count : kSizes) {
      std::vector<f32> x = values(Content::normal, count, kSeed),
                       y = values(Content::normal, count, kSeed + 1);
      std::vector<f32> one_by_one = y;
      leaves.add_scaled(y.data(), x.data(), 0.37f, count);
      for (size_t i = 0; i < x.size(); i++) leaves.add_scaled(&one_by_one[i], &x[i], 0.37f, 1);
      CHECK(std::memcmp(y.data(), one_by_one.data(), sizeof(f32) * y.size()) == 0);
    }
  }
}

TEST_CASE("conversions to and from f16 have the bits of the definition") {
  for_all([](const LeafTable& leaves, Content content, i64 count, u64 seed) {
    std::vector<f32> x = values(content, count, seed);
    if (count > 8) x[0] = 1e6f, x[3] = -INFINITY, x[8] = 6e-8f;
    CanaryBuffer<u16> half = output<u16>(count);
    leaves.to_f16(x.data(), half.data(), count);
    CHECK(half.first_damaged() == kUndamaged);
    CanaryBuffer<f32> back = output<f32>(count);
    leaves.from_f16(half.data(), back.data(), count);
    CHECK(back.first_damaged() == kUndamaged);
    i64 wrong = 0;
    for (i64 i = 0; i < count; i++) {
      wrong += half.data()[i] != f32_to_f16(x[static_cast<size_t>(i)]);
      wrong += back.data()[i] != f16_to_f32(half.data()[i]);
    }
    CHECK(wrong == 0);
  });
}

// --- 8-bit activations
// ------------------------------------------------------------------------------------------

static f32 largest(const f32* x, i64 count) {
  f32 max = 0;
  for (i64 i = 0; i < count; i++) max = std::max(max, std::abs(x[i]));
  return max;
}

// What any level must store for a block of finite values.
static void check_block(const f32* x, i64 count, f32 d, const i8* q) {
  f32 max = largest(x, count);
  REQUIRE(d == max / 127.0f);
  f32 inverse = max > 0 ? 127.0f / max : 0.0f;
  if (std::isinf(inverse)) inverse = 0.0f;
  for (i64 i = 0; i < count; i++) {
    REQUIRE(static_cast<f32>(q[i]) == std::nearbyint(x[i] * inverse));
    // Half a step, and the roundings of the inverse and the product.
    if (inverse > 0)
      REQUIRE(std::abs(static_cast<f64>(d) * q[i] - static_cast<f64>(x[i])) <=
              (0.5 + 127 * 4 * kHalfUlp) * static_cast<f64>(d));
  }
}

TEST_CASE("8-bit activations are the nearest steps of their block, with exact sums") {
  u64 seed = kSeed;
  for (IsaLevel level : levels())
    for (Content content : kContents)
      for (i64 blocks : {1, 3, 28}) {
        INFO(name(level) << ", content " << static_cast<int>(content) << ", blocks " << blocks << ", seed "
                         << ++seed);
        std::vector<f32> x = values(content, blocks * 256, seed);
        for (size_t i = 7; i < x.size() && content == Content::normal; i += 64) x[i] = 0.5f;  // ties
        CanaryBuffer<ActQ8_32> small = output<ActQ8_32>(blocks * 8);
        leaf_table(level).quantize_q8_32(x.data(), small.data(), blocks * 256);
        CHECK(small.first_damaged() == kUndamaged);
        for (i64 b = 0; b < blocks * 8; b++) {
          const ActQ8_32& block = small.data()[b];
          check_block(x.data() + 32 * b, 32, block.d, block.q);
          i32 sum = 0;
          for (i8 q : block.q) sum += q;
          REQUIRE(block.sum == sum);
        }
        CanaryBuffer<ActQ8_256> large = output<ActQ8_256>(blocks);
        leaf_table(level).quantize_q8_256(x.data(), large.data(), blocks * 256);
        CHECK(large.first_damaged() == kUndamaged);
        for (i64 b = 0; b < blocks; b++) {
          const ActQ8_256& block = large.data()[b];
          check_block(x.data() + 256 * b, 256, block.d, block.q);
          for (i64 g = 0; g < 16; g++) {
            i32 sum = 0;
            for (i64 i = 0; i < 16; i++) sum += block.q[16 * g + i];
            REQUIRE(block.sums[g] == sum);
          }
        }
      }
}

TEST_CASE("an activation that is no number makes its block's scale no number, never a wrong value") {
  for (IsaLevel level : levels())
    for (f32 bad : {std::numeric_limits<f32>::quiet_NaN(), -INFINITY, INFINITY})
      for (i64 place : {0, 5, 31}) {
        std::vector<f32> x(256, 1.0f);
        x[static_cast<size_t>(place)] = bad;
        std::vector<ActQ8_32> small(8);
        leaf_table(level).quantize_q8_32(x.data(), small.data(), 256);
        // What a product computes from the block: d * sum.
        CHECK(!std::isfinite(small[0].d));
        CHECK(small[0].sum == 0);
        CHECK(std::isnan(small[0].d * static_cast<f32>(small[0].sum)));
        CHECK(small[1].d == 1.0f / 127.0f);
        ActQ8_256 large;
        leaf_table(level).quantize_q8_256(x.data(), &large, 256);
        CHECK(!std::isfinite(large.d));
        for (i8 q : large.q) CHECK(q == 0);
      }
}

TEST_CASE("activations too small to invert become zero") {
  for (IsaLevel level : levels()) {
    std::vector<f32> x(256, 1e-38f);
    ActQ8_256 block;
    leaf_table(level).quantize_q8_256(x.data(), &block, 256);
    for (i8 q : block.q) CHECK(q == 0);
    CHECK(block.d < 1e-37f);
  }
}
