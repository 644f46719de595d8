// The leaves of attention at every level against f64 arithmetic. Tolerances count roundings: a chain of n fused products
// is off by at most n half units of the sum of magnitudes.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/leaf.h"
#include "kernels/format/f16.h"
#include "tests/kernels/cpu/op_inputs.h"
#include "tests/support/canary.h"

using namespace stoker;
using namespace stoker::test;

namespace {

constexpr i64 kUndamaged = CanaryBuffer<f32>::kNone;
constexpr f32 kInfinity = std::numeric_limits<f32>::infinity();

struct Shape {
  i64 outputs, rows, cols;
};
// Tails of every kind, more rows than a panel has, the shapes of both products of V3.
constexpr Shape kShapes[] = {{1, 1, 1},   {2, 3, 7},    {5, 100, 128}, {9, 33, 85},   {8, 16, 16},  {13, 300, 15},
                             {3, 0, 9},   {96, 576, 64}, {64, 96, 512}, {17, 97, 40},  {12, 257, 24}, {25, 64, 33}};

struct ProductCase {
  Shape s;
  bool accumulate, rows_are_contiguous;
  i64 w_output_stride, w_row_stride, x_stride, y_stride;
  std::vector<f32> w, x, y;

  ProductCase(Shape shape, bool add, bool contiguous, Rng& rng)
      : s(shape),
        accumulate(add),
        rows_are_contiguous(contiguous),
        w_output_stride(contiguous ? s.rows + 2 : 1),
        w_row_stride(contiguous ? 1 : s.outputs + 3),
        x_stride(s.cols + 5),
        y_stride(s.cols + 3),
        w(normals((s.outputs + 3) * (s.rows + 2), 1, rng)),
        x(normals(std::max<i64>(1, s.rows) * x_stride, 1, rng)),
        y(normals(s.outputs * y_stride, 1, rng)) {
    for (size_t i = 0; i < x.size(); i += 13) x[i] *= 1e4f;
  }

  Product product(f32* to) const {
    return {.w = w.data(),
            .w_output_stride = w_output_stride,
            .w_row_stride = w_row_stride,
            .x = x.data(),
            .x_stride = x_stride,
            .y = to,
            .y_stride = y_stride,
            .outputs = s.outputs,
            .rows = s.rows,
            .cols = s.cols,
            .accumulate = accumulate};
  }

  void see(Worst& worst, i64 o, i64 c, f32 got) const {
    f64 sum = accumulate ? static_cast<f64>(y[static_cast<size_t>(o * y_stride + c)]) : 0, magnitude = std::abs(sum);
    for (i64 r = 0; r < s.rows; r++) {
      f64 term = static_cast<f64>(w[static_cast<size_t>(o * w_output_stride + r * w_row_stride)]) *
                 static_cast<f64>(x[static_cast<size_t>(r * x_stride + c)]);
      sum += term;
      magnitude += std::abs(term);
    }
    worst.see("output " + std::to_string(o) + " column " + std::to_string(c), static_cast<f64>(got), sum,
              static_cast<f64>(s.rows + 1) * kHalfUlp * magnitude);
  }
};

}  // namespace

TEST_CASE("a product of columns of weights and rows is right, each element with the same bits alone and among others") {
  Rng rng(70);
  for (IsaLevel level : levels())
    for (Shape shape : kShapes)
      for (bool accumulate : {false, true})
        for (bool contiguous : {false, true}) {
          INFO(std::string(name(level)) << ", outputs " << shape.outputs << ", rows " << shape.rows << ", cols "
                                        << shape.cols << ", accumulate " << accumulate << ", contiguous " << contiguous);
          ProductCase c(shape, accumulate, contiguous, rng);
          CanaryBuffer<f32> y(shape.outputs * c.y_stride);
          for (i64 o = 0; o < shape.outputs; o++)
            for (i64 i = 0; i < shape.cols; i++) {
              y.expect_write(o * c.y_stride + i);
              if (accumulate) y.data()[o * c.y_stride + i] = c.y[static_cast<size_t>(o * c.y_stride + i)];
            }
          const LeafTable& leaves = leaf_table(level);
          leaves.product(c.product(y.data()));
          CHECK(y.first_damaged() == kUndamaged);
          Worst worst;
          i64 different = 0;
          for (i64 o = 0; o < shape.outputs; o++)
            for (i64 i = 0; i < shape.cols; i++) {
              f32 got = y.data()[o * c.y_stride + i];
              if ((o + i) % 7 == 0) c.see(worst, o, i, got);
              f32 alone = c.y[static_cast<size_t>(o * c.y_stride + i)];
              Product one = c.product(&alone);
              one.w += o * c.w_output_stride;
              one.x += i;
              one.outputs = one.cols = 1;
              leaves.product(one);
              different += std::memcmp(&alone, &got, sizeof alone) != 0;
            }
          CHECK_MESSAGE(worst.share <= 1, worst.text);
          CHECK(different == 0);
        }
}

TEST_CASE("a transposed matrix has every element in its place") {
  Rng rng(71);
  for (IsaLevel level : levels())
    for (Shape s : kShapes) {
      const i64 rows = s.outputs, cols = s.cols, from_stride = cols + 3, to_stride = rows + 2;
      INFO(std::string(name(level)) << ", " << rows << " x " << cols);
      std::vector<f32> from = normals(rows * from_stride, 1, rng);
      CanaryBuffer<f32> to(cols * to_stride);
      for (i64 c = 0; c < cols; c++)
        for (i64 r = 0; r < rows; r++) to.expect_write(c * to_stride + r);
      leaf_table(level).transpose({from.data(), from_stride, rows, cols, 0.3f, to.data(), to_stride});
      CHECK(to.first_damaged() == kUndamaged);
      i64 wrong = 0;
      for (i64 c = 0; c < cols; c++)
        for (i64 r = 0; r < rows; r++)
          wrong += to.data()[c * to_stride + r] != 0.3f * from[static_cast<size_t>(r * from_stride + c)];
      CHECK(wrong == 0);
    }
}

TEST_CASE("two steps of an online softmax, hidden scores among them, are the softmax of both") {
  // Series 1e-8, nine roundings of Horner's scheme, the product with the power of two.
  constexpr f64 kExpError = 1e-8 + 10 * kHalfUlp;
  Rng rng(72);
  for (IsaLevel level : levels())
    for (i64 cols : {1, 7, 8, 16, 19, 64})
      for (i64 rows : {1, 5, 96})
        for (f32 deviation : {0.0f, 1.0f, 100.0f}) {
          INFO(std::string(name(level)) << ", " << rows << " x " << cols << ", deviation " << deviation);
          const i64 stride = cols + 4;
          CanaryBuffer<f32> scores(2 * rows * stride), best(cols), sum(cols), shrink(cols);
          std::vector<f32> x = normals(2 * rows * stride, deviation, rng);
          for (i64 r = 0; r < 2 * rows; r++)
            for (i64 c = 0; c < cols; c++) {
              // Never the first row; all of the second step for some columns.
              if (r > 0 && (r * 7 + c) % 5 == 0) x[static_cast<size_t>(r * stride + c)] = -kInfinity;
              if (r >= rows && c % 3 == 1) x[static_cast<size_t>(r * stride + c)] = -kInfinity;
              scores.expect_write(r * stride + c);
              scores.data()[r * stride + c] = x[static_cast<size_t>(r * stride + c)];
            }
          for (i64 c = 0; c < cols; c++) {
            for (CanaryBuffer<f32>* b : {&best, &sum, &shrink}) b->expect_write(c);
            best.data()[c] = -kInfinity;
            sum.data()[c] = 0;
          }
          std::vector<f32> first_shrink;
          for (i64 step = 0; step < 2; step++) {
            leaf_table(level).softmax_columns({scores.data() + step * rows * stride, stride, rows, cols, best.data(),
                                               sum.data(), shrink.data()});
            if (step == 0) first_shrink.assign(shrink.data(), shrink.data() + cols);
          }
          for (CanaryBuffer<f32>* b : {&scores, &best, &sum, &shrink}) CHECK(b->first_damaged() == kUndamaged);
          Worst worst;
          for (i64 c = 0; c < cols; c++) {
            auto at = [&](i64 r) { return static_cast<f64>(x[static_cast<size_t>(r * stride + c)]); };
            CHECK(first_shrink[static_cast<size_t>(c)] == 0);
            f64 largest = -INFINITY, total = 0, furthest = 0;
            for (i64 r = 0; r < 2 * rows; r++) largest = std::max(largest, at(r));
            CHECK(static_cast<f64>(best.data()[c]) == largest);
            for (i64 r = 0; r < 2 * rows; r++) {
              f64 argument = at(r) - largest;
              total += std::exp(argument);
              if (argument > -INFINITY) furthest = std::max(furthest, std::abs(argument));
              // Weights of the first step are relative to what was the largest then.
              f64 weight = static_cast<f64>(scores.data()[r * stride + c]);
              if (r < rows) weight *= static_cast<f64>(shrink.data()[c]);
              f64 error = 2 * kExpError + 4 * kHalfUlp * std::abs(argument);
              worst.see("row " + std::to_string(r), weight, std::exp(argument),
                        argument > -INFINITY ? error * std::exp(argument) + 2e-38 : 0);
            }
            f64 roundings = static_cast<f64>(2 * rows + 2) * kHalfUlp + 2 * kExpError + 4 * kHalfUlp * std::min(furthest, 90.0);
            worst.see("sum " + std::to_string(c), static_cast<f64>(sum.data()[c]), total, roundings * total);
          }
          CHECK_MESSAGE(worst.share <= 1, worst.text);
        }
}

TEST_CASE("a score that is not a number is not lost") {
  for (IsaLevel level : levels()) {
    INFO(std::string(name(level)));
    f32 scores[3] = {1, std::nanf(""), 2}, best = -kInfinity, sum = 0, shrink = 0;
    leaf_table(level).softmax_columns({scores, 1, 3, 1, &best, &sum, &shrink});
    CHECK(std::isnan(sum));
  }
}

TEST_CASE("cache rows of 8 bits are off by half a step at most, with the same bits at every level") {
  Rng rng(73);
  for (f32 deviation : {1.0f, 1e-3f, 3e-8f, 1e5f, 0.0f}) {
    constexpr i64 kCount = 18 * 32;
    std::vector<f32> x = normals(kCount, deviation, rng);
    std::vector<BlockQ8_0> want(kCount / 32);
    std::vector<f32> decoded(kCount);
    const LeafTable& ref = leaf_table(IsaLevel::ref);
    ref.quantize_q8_0(x.data(), want.data(), kCount);
    ref.dequantize[static_cast<i64>(BlockType::Q8_0)](want.data(), decoded.data(), kCount);
    i64 off = 0;
    for (i64 i = 0; i < kCount; i++) {
      f64 step = static_cast<f64>(f16_to_f32(want[static_cast<size_t>(i / 32)].d));
      f64 error = std::abs(static_cast<f64>(decoded[static_cast<size_t>(i)]) - static_cast<f64>(x[static_cast<size_t>(i)]));
      off += error > step * (0.5 + 128 * kHalfUlp);  // the quotient is rounded before it is rounded
    }
    CHECK(off == 0);
    for (IsaLevel level : levels()) {
      INFO(std::string(name(level)) << ", deviation " << deviation);
      CanaryBuffer<u8> got(kCount / 32 * i64{sizeof(BlockQ8_0)});
      for (i64 i = 0; i < got.count(); i++) got.expect_write(i);
      leaf_table(level).quantize_q8_0(x.data(), reinterpret_cast<BlockQ8_0*>(got.data()), kCount);
      CHECK(got.first_damaged() == CanaryBuffer<u8>::kNone);
      CHECK(std::memcmp(got.data(), want.data(), static_cast<size_t>(got.count())) == 0);
      CanaryBuffer<f32> back(kCount);
      for (i64 i = 0; i < kCount; i++) back.expect_write(i);
      leaf_table(level).dequantize[static_cast<i64>(BlockType::Q8_0)](want.data(), back.data(), kCount);
      CHECK(back.first_damaged() == kUndamaged);
      CHECK(std::memcmp(back.data(), decoded.data(), sizeof(f32) * decoded.size()) == 0);
    }
  }
}

TEST_CASE("a cache row that is not finite does not become a usable one") {
  for (IsaLevel level : levels())
    for (f32 bad : {kInfinity, std::nanf(""), 1e30f}) {
      f32 x[32] = {1, bad};
      BlockQ8_0 block;
      f32 back[32];
      leaf_table(level).quantize_q8_0(x, &block, 32);
      leaf_table(level).dequantize[static_cast<i64>(BlockType::Q8_0)](&block, back, 32);
      INFO(std::string(name(level)) << ", " << bad);
      CHECK(!std::isfinite(back[1]));
    }
}
