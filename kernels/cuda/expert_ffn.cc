// The FFN of many experts on a card. Experts with few tokens, decode's, have gate, up and silu in one launch per format;
// others have products by tensor cores, or by kernels of their formats, and silu after them.
#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/cuda/op_parts.h"
#include "kernels/cuda/products.h"

namespace stoker::cuda {

namespace {

class ExpertFfn {
 public:
  ExpertFfn(const Target& target, const ExpertFfnArgs& args) : target_(target), a_(args) {
    for (const ExpertWork& w : a_.work) {
      for (const Matrix* m : {&w.gate, &w.up, &w.down})
        require_eight_bits(m->type, weight_input(m->type, a_.exact));
      tokens_ += w.tokens;
    }
    CHECK(expert_scratch_bytes(tokens_, a_.ffn) <= a_.scratch_bytes);
    gate_ = reinterpret_cast<f32*>(a_.scratch);
    inner_ = reinterpret_cast<std::byte*>(gate_ + 2 * tokens_ * a_.ffn);
  }

  void run() {
    for (const BlockTypeInfo& type : all_block_types()) multiply_inner(type.type);
    join_separate();
    quantize_inner();
    for (const BlockTypeInfo& type : all_block_types()) multiply_down(type.type);
  }

 private:
  static bool few(const ExpertWork& w) { return w.tokens < kGemmFromTokens; }
  static bool fused(const ExpertWork& w) { return few(w) && w.gate.type == w.up.type && has_blocks(w.gate.type); }

  // Calls f(work, index of its first token).
  template <class F>
  void for_each_work(F&& f) const {
    i64 first = 0;
    for (const ExpertWork& w : a_.work) {
      f(w, first);
      first += w.tokens;
    }
  }

  // Of the gate rows; those of up lie behind them.
  MatvecArgs inner_args(BlockType type) const {
    const ActivationForm form = weight_input(type, false);
    const void* x = form == ActivationForm::Q8_32 ? a_.x_q8_32 : a_.x_q8_256;
    return {.jobs = nullptr,
            .job_count = nullptr,
            .job_limit = 0,
            .uniform = {},
            .rows = a_.ffn,
            .cols = a_.hidden,
            .x = static_cast<const std::byte*>(x),
            .x_stride_bytes = card_row_bytes(form, a_.hidden),
            .y = gate_,
            .y_stride = a_.ffn,
            .books = nullptr};
  }

  void multiply_inner(BlockType type) const {
    const i64 up_offset = tokens_ * a_.ffn;
    if (!has_blocks(type)) {
      for_each_work([&](const ExpertWork& w, i64 first) {
        if (w.gate.type == type) multiply_float(w.gate, w, first, 0);
        if (w.up.type == type) multiply_float(w.up, w, first, up_offset);
      });
      return;
    }
    JobBatch decode(target_, type, inner_args(type), false), prompt(target_, type, inner_args(type), true);
    for_each_work([&](const ExpertWork& w, i64 first) {
      JobBatch& batch = few(w) ? decode : prompt;
      MatvecJob job{.first = static_cast<const std::byte*>(w.gate.data),
                    .second = fused(w) ? static_cast<const std::byte*>(w.up.data) : nullptr,
                    .x_rows = w.rows,
                    .y_rows = nullptr,
                    .x_first = 0,
                    .x_step = 1,
                    .y_first = static_cast<i32>(first),
                    .tokens = static_cast<i32>(w.tokens),
                    .y_offset = 0};
      if (w.gate.type == type) batch.add(job);
      if (fused(w) || w.up.type != type) return;
      job.first = static_cast<const std::byte*>(w.up.data);
      job.y_offset = up_offset;
      batch.add(job);
    });
    decode.launch();
    prompt.launch();
  }

  void multiply_float(const Matrix& m, const ExpertWork& w, i64 first, i64 y_offset) const {
    start_float_matvec(m.type,
                       {.weights = static_cast<const std::byte*>(m.data),
                        .matrix_stride_bytes = 0,
                        .matrices = 1,
                        .rows = m.rows,
                        .cols = m.cols,
                        .x = a_.x,
                        .x_stride = a_.hidden,
                        .x_rows = w.rows,
                        .tokens = w.tokens,
                        .y = gate_ + first * a_.ffn + y_offset,
                        .y_rows = nullptr,
                        .y_stride = a_.ffn,
                        .y_matrix_stride = 0},
                       target_.card, target_.stream);
  }

  // Neighbours in one launch: a prompt may have every expert of a layer here.
  void join_separate() const {
    i64 begin = 0;
    for_each_work([&](const ExpertWork& w, i64 first) {
      if (!fused(w)) return;
      join(begin, first);
      begin = first + w.tokens;
    });
    join(begin, tokens_);
  }
  void join(i64 begin, i64 end) const {
    f32* gate = gate_ + begin * a_.ffn;
    start_silu({gate, gate + tokens_ * a_.ffn, (end - begin) * a_.ffn}, target_.card, target_.stream);
  }

  i64 inner_bytes(ActivationForm form) const { return card_row_bytes(form, a_.ffn); }
  // Wide enough for both forms, so that experts may differ.
  i64 inner_stride() const {
    const i64 narrow = a_.ffn % 32 == 0 ? inner_bytes(ActivationForm::Q8_32) : 0;
    return std::max(narrow, a_.ffn % 256 == 0 ? inner_bytes(ActivationForm::Q8_256) : 0);
  }

  void quantize_rows_from(ActivationForm form, i64 first, i64 count) const {
    if (form == ActivationForm::F32 || count == 0) return;
    const i64 stride = inner_stride();
    start_quantize({gate_ + first * a_.ffn, count, a_.ffn, a_.ffn, form, inner_ + first * stride}, stride, target_.card,
                   target_.stream);
  }

  // Neighbours with the same form in one launch.
  void quantize_inner() const {
    ActivationForm form = ActivationForm::F32;
    i64 begin = 0;
    for_each_work([&](const ExpertWork& w, i64 first) {
      const ActivationForm mine = weight_input(w.down.type, false);
      if (mine == form) return;
      quantize_rows_from(form, begin, first - begin);
      form = mine;
      begin = first;
    });
    quantize_rows_from(form, begin, tokens_ - begin);
  }

  void multiply_down(BlockType type) const {
    if (!has_blocks(type)) {
      for_each_work([&](const ExpertWork& w, i64 first) {
        if (w.down.type != type) return;
        start_float_matvec(type,
                           {.weights = static_cast<const std::byte*>(w.down.data),
                            .matrix_stride_bytes = 0,
                            .matrices = 1,
                            .rows = a_.hidden,
                            .cols = a_.ffn,
                            .x = gate_ + first * a_.ffn,
                            .x_stride = a_.ffn,
                            .x_rows = nullptr,
                            .tokens = w.tokens,
                            .y = a_.out,
                            .y_rows = w.out_rows,
                            .y_stride = a_.hidden,
                            .y_matrix_stride = 0},
                           target_.card, target_.stream);
      });
      return;
    }
    const MatvecArgs args{.jobs = nullptr,
                          .job_count = nullptr,
                          .job_limit = 0,
                          .uniform = {},
                          .rows = a_.hidden,
                          .cols = a_.ffn,
                          .x = inner_,
                          .x_stride_bytes = inner_stride(),
                          .y = a_.out,
                          .y_stride = a_.hidden,
                          .books = nullptr};
    JobBatch decode(target_, type, args, false), prompt(target_, type, args, true);
    for_each_work([&](const ExpertWork& w, i64 first) {
      if (w.down.type != type) return;
      (few(w) ? decode : prompt)
          .add({.first = static_cast<const std::byte*>(w.down.data),
                .second = nullptr,
                .x_rows = nullptr,
                .y_rows = w.out_rows,
                .x_first = static_cast<i32>(first),
                .x_step = 1,
                .y_first = 0,
                .tokens = static_cast<i32>(w.tokens),
                .y_offset = 0});
    });
    decode.launch();
    prompt.launch();
  }

  const Target& target_;
  const ExpertFfnArgs& a_;
  i64 tokens_ = 0;
  f32* gate_;         // [tokens, ffn], then silu(gate) * up; up's [tokens, ffn] behind it
  std::byte* inner_;  // [tokens] rows of inner_stride(): what down multiplies
};

}  // namespace

void expert_ffn(Stream& stream, const ExpertFfnArgs& args) {
  if (!args.work.empty()) ExpertFfn(target_of(stream), args).run();
}

}  // namespace stoker::cuda
