// The fused FFN of many experts in one parallel region. Gate and up of a block of rows are multiplied and joined by one
// worker, blocks are shared out so that each core reads long streams whatever the mix of formats and token counts, and
// an expert's down matrix starts when its own inner row is complete: cores do not wait for the other experts.
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <new>
#include <thread>

#include "kernels/base/check.h"
#include "kernels/base/work_ranges.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/tiles.h"
#include "kernels/device/stream.h"

namespace stoker {

namespace {

constexpr i64 kCacheLine = 64;

// One expert's way through the region, as long as a cache line: workers count down those of different experts at a time.
struct Progress {
  static constexpr i32 kInnerReady = -1;
  std::atomic<i32> blocks_left;  // of gate and up; kInnerReady once the inner rows are in the form that down wants
  std::array<std::byte, kCacheLine - sizeof(blocks_left)> rest;
};
static_assert(sizeof(Progress) == kCacheLine);

// Bytes of an activation in the wider of the two 8-bit forms, rounded up for a row.
i64 q8_row_bytes(i64 ffn) { return div_up(ffn, 32) * i64{sizeof(ActQ8_32)} + i64{sizeof(ActQ8_256)}; }
i64 inner_row_bytes(i64 ffn) { return round_up(q8_row_bytes(ffn), kCacheLine); }

}  // namespace

i64 expert_scratch_bytes(i64 total_tokens, i64 ffn) {
  // Every expert has a token, so there are no more experts than tokens.
  i64 rows = round_up(2 * total_tokens * ffn * i64{sizeof(f32)}, kCacheLine);
  return rows + total_tokens * (inner_row_bytes(ffn) + i64{sizeof(Progress)} + i64{sizeof(i64)});
}

namespace cpu {

namespace {

class ExpertFfn {
 public:
  ExpertFfn(Stream& stream, const ExpertFfnArgs& args) : stream_(stream), a_(args) {
    i64 tokens = 0;
    for (const ExpertWork& w : a_.work) tokens += w.tokens;
    CHECK(expert_scratch_bytes(tokens, a_.ffn) <= a_.scratch_bytes);
    gate_ = reinterpret_cast<f32*>(a_.scratch);
    up_ = gate_ + tokens * a_.ffn;
    inner_ = a_.scratch + round_up(2 * tokens * a_.ffn * i64{sizeof(f32)}, kCacheLine);
    inner_bytes_ = inner_row_bytes(a_.ffn);
    block_rows_ = choose_block_rows();
    progress_ = reinterpret_cast<Progress*>(inner_ + tokens * inner_bytes_);
    first_tokens_ = reinterpret_cast<i64*>(progress_ + count());
    i64 first = 0;
    for (i64 i = 0; i < count(); first += work(i++).tokens) {
      new (progress_ + i) Progress{.blocks_left = static_cast<i32>(inner_blocks()), .rest = {}};
      first_tokens_[i] = first;
    }
  }

  void run() {
    WorkRanges inner(count() * inner_blocks(), stream_.workers().size());
    i64 down_blocks = div_up(a_.hidden, block_rows_);
    WorkRanges outer(count() * down_blocks, stream_.workers().size());
    stream_.workers().run([&](int worker) {
      for (i64 i = inner.take(worker); i >= 0; i = inner.take(worker))
        gate_and_up(i / inner_blocks(), i % inner_blocks() * block_rows_);
      for (i64 i = outer.take(worker); i >= 0; i = outer.take(worker)) {
        wait_for_inner(i / down_blocks);
        down(i / down_blocks, i % down_blocks * block_rows_);
      }
    });
  }

 private:
  i64 count() const { return static_cast<i64>(a_.work.size()); }
  const ExpertWork& work(i64 i) const { return a_.work[static_cast<size_t>(i)]; }

  i64 inner_blocks() const { return div_up(a_.ffn, block_rows_); }
  i64 first_token(i64 expert) const { return first_tokens_[expert]; }

  // Long streams, but pieces enough for all workers to end together: fewer where rows are so short that taking a piece and
  // turning its activations would cost a good part of what it computes.
  i64 choose_block_rows() const {
    const i64 rows = count() * a_.ffn / stream_.workers().size();
    const i64 worth_taking = kLeastBlockBytes / row_bytes(work(0).gate.type, work(0).gate.cols);
    const i64 wanted = std::max(rows / kBlocksPerWorker, std::min(worth_taking, rows / kLeastBlocksPerWorker));
    return std::clamp(wanted / kTileRows * kTileRows, kTileRows, kMaxBlockRows);
  }

  ActivationForm form(BlockType type) const { return weight_input(type, a_.exact); }

  // silu(gate x) * (up x) for rows row .. row + block_rows_ of one expert, while both are in L1.
  void gate_and_up(i64 expert, i64 row) const {
    const ExpertWork& w = work(expert);
    multiply_inner(expert, w.gate, row, gate_);
    multiply_inner(expert, w.up, row, up_);
    i64 rows = std::min(block_rows_, a_.ffn - row);
    for (i64 t = 0; t < w.tokens; t++) {
      i64 at = (first_token(expert) + t) * a_.ffn + row;
      leaves_.silu_mul(gate_ + at, up_ + at, gate_ + at, rows);
    }
    if (progress_[expert].blocks_left.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    for (i64 t = 0; t < w.tokens; t++) quantize_inner(form(w.down.type), first_token(expert) + t);
    progress_[expert].blocks_left.store(Progress::kInnerReady, std::memory_order_release);
  }

  void multiply_inner(i64 expert, const Matrix& m, i64 row, f32* out) const {
    const ExpertWork& w = work(expert);
    ActivationForm x_form = form(m.type);
    const void* x = x_form == ActivationForm::F32     ? a_.x
                    : x_form == ActivationForm::Q8_32 ? a_.x_q8_32
                                                      : a_.x_q8_256;
    MatmulTile whole{.w = static_cast<const std::byte*>(m.data),
                     .w_row_bytes = row_bytes(m.type, m.cols),
                     .rows = m.rows,
                     .cols = m.cols,
                     .x = static_cast<const std::byte*>(x),
                     .x_stride_bytes = activation_row_bytes(x_form, m.cols),
                     .x_rows = w.rows,
                     .y = out + first_token(expert) * a_.ffn,
                     .y_stride = a_.ffn,
                     .y_rows = nullptr,
                     .tokens = w.tokens};
    run_tiles(matmul_leaf(stream_, m.type, x_form), whole, row, std::min(row + block_rows_, a_.ffn));
  }

  // The inner row of one token in the form that its down matrix wants.
  void quantize_inner(ActivationForm form, i64 token) const {
    const f32* from = gate_ + token * a_.ffn;
    std::byte* to = inner_ + token * inner_bytes_;
    switch (form) {
      case ActivationForm::F32: break;
      case ActivationForm::Q8_32: leaves_.quantize_q8_32(from, reinterpret_cast<ActQ8_32*>(to), a_.ffn); break;
      case ActivationForm::Q8_256: leaves_.quantize_q8_256(from, reinterpret_cast<ActQ8_256*>(to), a_.ffn); break;
    }
  }

  // Short: all of the expert's blocks have been taken, by workers that compute them right now.
  void wait_for_inner(i64 expert) const {
    const std::atomic<i32>& left = progress_[expert].blocks_left;
    for (int i = 0; left.load(std::memory_order_acquire) != Progress::kInnerReady; i++) {
      _mm_pause();
      if (i >= 1000) std::this_thread::yield();
    }
  }

  void down(i64 expert, i64 row) const {
    const ExpertWork& w = work(expert);
    ActivationForm x_form = form(w.down.type);
    bool as_float = x_form == ActivationForm::F32;
    i64 first = first_token(expert);
    const f32* floats = gate_ + first * a_.ffn;
    MatmulTile whole{.w = static_cast<const std::byte*>(w.down.data),
                     .w_row_bytes = row_bytes(w.down.type, w.down.cols),
                     .rows = w.down.rows,
                     .cols = w.down.cols,
                     .x = as_float ? reinterpret_cast<const std::byte*>(floats) : inner_ + first * inner_bytes_,
                     .x_stride_bytes = as_float ? a_.ffn * i64{sizeof(f32)} : inner_bytes_,
                     .x_rows = nullptr,
                     .y = a_.out,
                     .y_stride = a_.hidden,
                     .y_rows = w.out_rows,
                     .tokens = w.tokens};
    run_tiles(matmul_leaf(stream_, w.down.type, x_form), whole, row, std::min(row + block_rows_, a_.hidden));
  }

  static constexpr i64 kMaxBlockRows = 128, kBlocksPerWorker = 32, kLeastBlocksPerWorker = 8;
  static constexpr i64 kLeastBlockBytes = 16 * kKiB;

  Stream& stream_;
  const LeafTable& leaves_ = leaf_table(stream_.level());
  const ExpertFfnArgs& a_;
  i64 block_rows_;  // what a worker takes at a time, of gate and up or of down
  // Parts of the scratch.
  f32* gate_;           // [tokens, ffn]; silu(gate) * up once a block is done
  f32* up_;             // [tokens, ffn]
  std::byte* inner_;    // [tokens], 8-bit rows of inner_bytes_
  i64 inner_bytes_;
  Progress* progress_;  // [experts]
  i64* first_tokens_;   // [experts]; an expert's place in the scratch rows
};

}  // namespace

void expert_ffn(Stream& stream, const ExpertFfnArgs& args) {
  if (!args.work.empty()) ExpertFfn(stream, args).run();
}

}  // namespace cpu
}  // namespace stoker
