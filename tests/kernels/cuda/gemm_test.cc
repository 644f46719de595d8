// The tensor-core product on an emulated card against sums in double of the decoded weights.
#include <doctest/doctest.h>

#include <cmath>

#include "kernels/cuda/gemm.h"
#include "tests/kernels/cpu/op_inputs.h"
#include "tests/kernels/cuda/card_rows.h"
#include "tests/kernels/cuda/emulated_gpu.h"
#include "tests/support/canary.h"

using namespace stoker;
using namespace stoker::cuda;
using namespace stoker::test;

namespace {

struct Shape {
  i64 rows, cols, tokens;
  bool scattered;
};

template <class Block>
void check(BlockType type, const Shape& s) {
  CAPTURE(std::string(info(type).name));
  CAPTURE(s.rows);
  CAPTURE(s.cols);
  CAPTURE(s.tokens);
  Rng rng(12);
  const TestMatrix w(type, s.rows, s.cols, 0.05f, rng);
  std::vector<std::byte> packed(static_cast<size_t>(packed_bytes(type, s.rows, s.cols)));
  pack_rows(type, s.rows, s.cols, w.blocks.data(), packed.data());
  const ActivationForm form = weight_input(type, false);
  const i64 x_rows = s.scattered ? 2 * s.tokens : s.tokens;
  const TestActivations x(form, normals(x_rows * s.cols, 3, rng), x_rows, s.cols);
  const CardRows rows = card_rows(x.bytes.data(), x_rows, s.cols, activation_row_bytes(form, s.cols), form);
  std::vector<i32> from, to;
  for (i64 t = 0; t < s.tokens; t++) {
    from.push_back(static_cast<i32>(rng.below(x_rows)));
    to.push_back(static_cast<i32>(s.tokens - 1 - t));
  }
  // One job for the first third of the tokens, one for the others, as experts have them; or all at once.
  std::vector<MatvecJob> jobs;
  const i64 third = s.tokens / 3;
  for (i64 first : {i64{0}, third}) {
    const i64 tokens = first == 0 ? third : s.tokens - third;
    jobs.push_back({.first = packed.data(), .second = nullptr, .x_rows = from.data() + first, .y_rows = to.data() + first,
                    .x_first = 0, .x_step = 1, .y_first = 0, .tokens = static_cast<i32>(tokens), .y_offset = 0});
  }
  const i64 stride = s.rows + 3;
  CanaryBuffer<f32> y(s.tokens * stride);
  const MatvecArgs args{.jobs = s.scattered ? jobs.data() : nullptr, .job_count = nullptr, .job_limit = s.scattered ? 2 : 1,
                        .uniform = {.first = packed.data(), .matrix_stride_bytes = 0, .matrices = 1, .tokens = s.tokens,
                                    .y_matrix_stride = 0},
                        .rows = s.rows, .cols = s.cols, .x = rows.bytes.data(), .x_stride_bytes = rows.stride_bytes,
                        .y = y.data(), .y_stride = stride, .books = decode_books().data()};
  const i64 token_tiles = div_up(s.tokens, kGemmTokens);
  emulate({3, kGemmThreads, gemm_shared_bytes<Block>},
          [&](const EmulatedThread& t) { gemm<Block>(t, args, token_tiles); });
  f64 worst = 0;
  for (i64 t = 0; t < s.tokens; t++)
    for (i64 r = 0; r < s.rows; r++) {
      const i64 x_row = s.scattered ? from[static_cast<size_t>(t)] : t, y_row = s.scattered ? to[static_cast<size_t>(t)] : t;
      f64 sum = 0, size = 0;
      for (i64 c = 0; c < s.cols; c++) {
        const f64 term = w.at(r, c) * x.at(x_row, c);
        sum += term;
        // A half is off by 2^-11 of itself or, when it is very small, by 2^-25: weight, activation, and their sum.
        size += 0x1.1p-10 * std::abs(term) + 0x1p-25 * std::abs(x.at(x_row, c));
      }
      y.expect_write(y_row * stride + r);
      const f64 error = std::abs(static_cast<f64>(y.data()[y_row * stride + r]) - sum) / (size + 1e-30);
      worst = std::max(worst, std::isnan(error) ? INFINITY : error);
    }
  CHECK(worst <= 1);
  CHECK(worst > 0);
  CHECK(y.first_damaged() == CanaryBuffer<f32>::kNone);
}

}  // namespace

TEST_CASE("the tensor-core product is as exact as halves are, for every format and for tails") {
  for_each_block_format([]<class Block>(BlockType type) {
    for (const Shape& s : {Shape{33, 768, 9, true}, Shape{70, 256, 66, false}})
      check<Block>(type, s);
    if (Block::kWeights == 32)  // half a step of columns
      for (i64 cols : {32, 160}) check<Block>(type, {3, cols, 12, false});
  });
}
