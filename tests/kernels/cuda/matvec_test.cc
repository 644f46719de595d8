// The quantised matrix-vector kernel, whole, on an emulated card: bit for bit what the twin's block sums give when they
// are added in the kernel's order.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cuda/matvec.h"
#include "tests/kernels/cpu/matmul_cases.h"
#include "tests/kernels/cuda/card_rows.h"
#include "tests/kernels/cuda/emulated_gpu.h"
#include "tests/kernels/cuda/matvec_order.h"
#include "tests/support/canary.h"

using namespace stoker;
using namespace stoker::cuda;
using namespace stoker::test;

namespace {

struct Outcome {
  i64 wrong = 0, damaged = CanaryBuffer<f32>::kNone;
};

// The case through the kernel, in jobs of at most kTokens, with `second` as second matrix when it is there.
template <class Block, int kTokens>
Outcome run(const MatmulCase& c, const MatmulData& data, const MatmulData* second) {
  const MatmulTile tile = data.tile();
  std::vector<std::byte> weights[2];
  const MatmulData* matrices[2] = {&data, second};
  for (int i = 0; i < 2; i++) {
    if (matrices[i] == nullptr) continue;
    weights[i].resize(static_cast<size_t>(packed_bytes(c.type, c.rows, c.cols)));
    pack_rows(c.type, c.rows, c.cols, matrices[i]->tile().w, weights[i].data());
  }
  const i64 x_rows = c.scattered ? 2 * c.tokens : c.tokens;
  const CardRows x = card_rows(tile.x, x_rows, c.cols, tile.x_stride_bytes, weight_input(c.type, false));
  std::vector<MatvecJob> jobs;
  for (i64 t = 0; t < c.tokens; t += kTokens)
    jobs.push_back({.first = weights[0].data(),
                    .second = second != nullptr ? weights[1].data() : nullptr,
                    .x_rows = tile.x_rows != nullptr ? tile.x_rows + t : nullptr,
                    .y_rows = tile.y_rows != nullptr ? tile.y_rows + t : nullptr,
                    .x_first = static_cast<i32>(t),
                    .x_step = 1,
                    .y_first = static_cast<i32>(t),
                    .tokens = static_cast<i32>(std::min<i64>(kTokens, c.tokens - t)),
                    .y_offset = 0});
  CanaryBuffer<f32> y(data.output_rows() * data.output_stride());
  const i32 count = static_cast<i32>(jobs.size());
  const MatvecArgs args{.jobs = jobs.data(),
                        .job_count = c.tokens % 2 == 0 ? &count : nullptr,
                        .job_limit = count,
                        .uniform = {},
                        .rows = c.rows,
                        .cols = c.cols,
                        .x = x.bytes.data(),
                        .x_stride_bytes = x.stride_bytes,
                        .y = y.data(),
                        .y_stride = data.output_stride(),
                        .books = decode_books().data()};
  emulate({.blocks = 3, .threads = kWarp * kMatvecWarps, .shared_bytes = matvec_shared_bytes<Block>(kTokens)},
          [&](const EmulatedThread& thread) { matvec<Block, kTokens>(thread, args); });

  Outcome outcome;
  for (i64 t = 0; t < c.tokens; t++)
    for (i64 r = 0; r < c.rows; r++) {
      const i64 at = data.output_row(t) * data.output_stride() + r;
      y.expect_write(at);
      const i64 from = tile.x_rows != nullptr ? tile.x_rows[t] : t;
      const std::byte* token = tile.x + from * tile.x_stride_bytes;
      f32 want = in_kernel_order(tile, c.type, tile.w + r * tile.w_row_bytes, token);
      if (second != nullptr) {
        const f32 up = in_kernel_order(tile, c.type, second->tile().w + r * tile.w_row_bytes, token);
        want = want / (1.0f + std::exp(-want)) * up;
      }
      outcome.wrong += std::bit_cast<u32>(y.data()[at]) != std::bit_cast<u32>(want);
    }
  outcome.damaged = y.first_damaged();
  return outcome;
}

template <class F>
void for_each_case(F&& f) {
  for (const MatmulCase& c : matmul_cases()) {
    if (c.exact || c.rows * c.cols * c.tokens > 1500000) continue;
    for_each_block_format([&]<class Block>(BlockType type) {
      if (type == c.type) f.template operator()<Block>(c);
    });
  }
}

}  // namespace

TEST_CASE("the matrix-vector kernel has the twin's bits for every format, shape, token count and content") {
  i64 cases = 0;
  for_each_case([&]<class Block>(const MatmulCase& c) {
    CAPTURE(c.name());
    const MatmulData data(c, 5);
    const Outcome outcome = run<Block, kMatvecTokens>(c, data, nullptr);
    CHECK(outcome.wrong == 0);
    CHECK(outcome.damaged == CanaryBuffer<f32>::kNone);
    cases++;
  });
  CHECK(cases > 400);
}

TEST_CASE("the kernel for one token gives what the one for eight gives") {
  for_each_case([]<class Block>(const MatmulCase& c) {
    if (c.tokens > 3) return;
    CAPTURE(c.name());
    const MatmulData data(c, 6);
    CHECK(run<Block, 1>(c, data, nullptr).wrong == 0);
  });
}

TEST_CASE("gate and up are joined by silu") {
  for_each_case([]<class Block>(const MatmulCase& c) {
    if (c.fill != Fill::random || c.tokens > 8) return;
    CAPTURE(c.name());
    const MatmulData gate(c, 7), up(c, 7 + (1 << 20));
    // Both see the activations of the first.
    const Outcome outcome = run<Block, kMatvecTokens>(c, gate, &up);
    CHECK(outcome.wrong == 0);
    CHECK(outcome.damaged == CanaryBuffer<f32>::kNone);
  });
}
