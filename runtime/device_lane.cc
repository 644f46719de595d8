#include "runtime/device_lane.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "kernels/base/check.h"

namespace stoker {

namespace {

using Limits = DeviceLane::Limits;

constexpr i64 kFloat = sizeof(f32), kIndex = sizeof(i32);

i64 pairs(const Hparams& h, const Limits& l) { return l.rows * h.top_k; }
i64 pairs_of_a_wave(const Hparams& h, const Limits& l) { return std::max(l.rows, h.top_k); }
i64 x_bytes(const Hparams& h, const Limits& l) { return l.rows * h.hidden * kFloat; }
i64 resident_bytes(const Hparams& h, const Limits& l) { return h.widest_resident_ffn() > 0 ? x_bytes(h, l) : 0; }
i64 logits_bytes(const Hparams& h, const Limits& l) { return l.rows * h.experts * kFloat; }
i64 choice_bytes(const Hparams& h, const Limits& l) { return pairs(h, l) * (kIndex + kFloat); }
i64 scratch_bytes(const Hparams& h, const Limits& l) {
  return std::max(expert_scratch_bytes(pairs_of_a_wave(h, l), h.expert_ffn),
                  expert_scratch_bytes(l.rows, h.widest_resident_ffn()));
}

// Hidden sizes that do not suit a form have no matrix that wants it.
i64 form_bytes(const Hparams& h, const Limits& l, ActivationForm form, i64 unit) {
  return l.exact || h.hidden % unit != 0 ? 0 : l.rows * round_up(activation_row_bytes(form, h.hidden), kDeviceRowAlignment);
}
i64 q8_32_bytes(const Hparams& h, const Limits& l) { return form_bytes(h, l, ActivationForm::Q8_32, 32); }
i64 q8_256_bytes(const Hparams& h, const Limits& l) { return form_bytes(h, l, ActivationForm::Q8_256, 256); }

bool are_neighbours(const DeviceWork& w) {
  return std::adjacent_find(w.rows, w.rows + w.tokens, [](i32 a, i32 b) { return b != a + 1; }) == w.rows + w.tokens;
}

}  // namespace

i64 DeviceLane::bytes_needed(const Hparams& h, const Limits& l) {
  constexpr i64 kParts = 10, kAlignment = 256;
  return x_bytes(h, l) + q8_32_bytes(h, l) + q8_256_bytes(h, l) + (pairs(h, l) + pairs_of_a_wave(h, l)) * kIndex +
         pairs_of_a_wave(h, l) * h.hidden * kFloat + resident_bytes(h, l) + logits_bytes(h, l) + choice_bytes(h, l) +
         scratch_bytes(h, l) + kParts * kAlignment;
}

DeviceLane::DeviceLane(Device& device, const Ops& ops, IsaLevel level, const Hparams& h, const Limits& l)
    : h_(h),
      limits_(l),
      ops_(ops),
      wave_pairs_(pairs_of_a_wave(h, l)),
      x_here_(device, x_bytes(h, l), "rows for a device"),
      rows_here_(device, std::max(pairs(h, l), wave_pairs_) * kIndex, "work lists for a device"),
      out_here_(device, pairs(h, l) * h.hidden * kFloat, "rows from a device"),
      resident_here_(device, resident_bytes(h, l), "rows from a device"),
      choice_here_(device, choice_bytes(h, l), "experts of rows"),
      x_(device, x_bytes(h, l), "rows"),
      q8_32_(device, q8_32_bytes(h, l), "quantised rows"),
      q8_256_(device, q8_256_bytes(h, l), "quantised rows"),
      rows_(device, pairs(h, l) * kIndex, "work lists"),
      counting_(device, wave_pairs_ * kIndex, "work lists"),
      out_(device, wave_pairs_ * h.hidden * kFloat, "expert outputs"),
      resident_out_(device, resident_bytes(h, l), "FFN outputs"),
      logits_(device, logits_bytes(h, l), "logits of experts"),
      choice_(device, choice_bytes(h, l), "experts of rows"),
      scratch_(device, scratch_bytes(h, l), "FFN scratch"),
      event_(device.make_event()),
      resident_event_(device.make_event()),
      choice_event_(device.make_event()),
      device_stream_(device.make_stream()),
      stream_(*device_stream_, level) {
  work_.reserve(static_cast<size_t>(h.experts));
  out_rows_.resize(static_cast<size_t>(pairs(h, l)));
  // Rows of a wave come out one after the other: 0, 1, 2 ...
  i32* counting = rows_here_.as<i32>();
  std::iota(counting, counting + wave_pairs_, 0);
  Status status = device_stream_->copy_to_device(counting_.data(), counting, wave_pairs_ * i64{sizeof(i32)});
  if (status.ok()) status = prepare();
  if (status.ok()) status = device_stream_->synchronize();
  if (!status.ok()) throw Error(status.message());
}

// A card's first op puts what it needs there. That it can is found out here, where a failure can be told.
Status DeviceLane::prepare() {
  ActivationForm form = q8_256_.bytes() > 0 ? ActivationForm::Q8_256 : ActivationForm::Q8_32;
  const DeviceBuffer& out = q8_256_.bytes() > 0 ? q8_256_ : q8_32_;
  if (out.bytes() == 0) return {};
  device_stream_->label("preparing");
  static_cast<void>(device_stream_->copy_to_device(x_.data(), x_here_.as<f32>(), h_.hidden * kFloat));
  ops_.quantize(stream_, {.x = x_.data().as<f32>(),
                          .rows = 1,
                          .cols = h_.hidden,
                          .x_stride = h_.hidden,
                          .form = form,
                          .out = out.data().as<void>()});
  return device_stream_->record(*event_);
}

void DeviceLane::post_gate(const f32* x, i64 rows, const ResidentRouter& router) {
  CHECK(!posted_ && resident_rows_ == 0 && routed_rows_ == 0);
  if (failed_) return;
  routed_rows_ = rows;
  const DevicePtr weights = choice_.data() + rows * h_.top_k * kIndex;
  try {
    device_stream_->label("router");
    send(x, rows);
    choose_experts(ops_, stream_, h_,
                   {.router = router.matrix,
                    .bias = router.bias,
                    .x = x_.data().as<f32>(),
                    .tokens = rows,
                    .logits = logits_.data().as<f32>(),
                    .ids = choice_.data().as<i32>(),
                    .weights = weights.as<f32>()});
    static_cast<void>(
        device_stream_->copy_to_host(choice_here_.as<i32>(), choice_.data(), rows * h_.top_k * (kIndex + kFloat)));
    choice_recorded_ = device_stream_->record(*choice_event_);
  } catch (const Error& e) {  // by which an op says that its card cannot be used any more
    choice_recorded_ = Status::failure(e.what());
  }
}

void DeviceLane::post_resident(const f32* x, i64 rows, const ResidentFfn& resident) {
  CHECK(!posted_ && resident_rows_ == 0);
  if (failed_) return;
  device_stream_->label("FFN");
  send(x, rows);
  post_resident(rows, resident);
}

void DeviceLane::post_resident(const f32* x, i64 rows, const ResidentFfn& resident, DeviceEvent& made) {
  CHECK(!sent_);
  if (failed_) return;
  static_cast<void>(device_stream_->wait(made));
  begin(x);
  const EightBitRows there = wanted_rows(resident);
  have_q8_32_ = there.q8_32 != nullptr;
  have_q8_256_ = there.q8_256 != nullptr;
  device_stream_->label("FFN");
  post_resident(rows, resident);
}

DeviceLane::EightBitRows DeviceLane::wanted_rows(const ResidentFfn& resident) const {
  EightBitRows wanted;
  for (const Matrix* m : {&resident.gate, &resident.up}) {
    const ActivationForm form = weight_input(m->type, limits_.exact);
    if (form == ActivationForm::Q8_32) wanted.q8_32 = q8_32_.data().as<void>();
    if (form == ActivationForm::Q8_256) wanted.q8_256 = q8_256_.data().as<void>();
  }
  return wanted;
}

void DeviceLane::post_resident(i64 rows, const ResidentFfn& resident) {
  resident_rows_ = rows;
  try {
    for (const Matrix* m : {&resident.gate, &resident.up}) quantize(m->type, rows);
    resident_work_ = {.gate = resident.gate,
                      .up = resident.up,
                      .down = resident.down,
                      .rows = counting_.data().as<i32>(),
                      .out_rows = counting_.data().as<i32>(),
                      .tokens = rows};
    post_ffn({&resident_work_, 1}, resident.gate.rows, resident_out_);
    static_cast<void>(
        device_stream_->copy_to_host(resident_here_.as<f32>(), resident_out_.data(), rows * h_.hidden * kFloat));
    resident_recorded_ = device_stream_->record(*resident_event_);
  } catch (const Error& e) {  // by which an op says that its card cannot be used any more
    resident_recorded_ = Status::failure(e.what());
  }
}

void DeviceLane::post(const f32* x, i64 rows, std::span<const DeviceWork> work) {
  CHECK(!posted_);
  if (failed_ || work.empty()) return;
  posted_ = true;
  try {
    device_stream_->label("experts");
    send(x, rows);
    for (const DeviceWork& w : work)
      for (const Matrix* m : {&w.gate, &w.up}) quantize(m->type, rows);
    post_waves(work);
    recorded_ = device_stream_->record(*event_);
  } catch (const Error& e) {
    recorded_ = Status::failure(e.what());
  }
}

// Once for both. What goes wrong here breaks the stream, so finish() hears of it.
void DeviceLane::send(const f32* x, i64 rows) {
  if (sent_) return;
  begin(x_.data().as<f32>());
  std::memcpy(x_here_.as<f32>(), x, static_cast<size_t>(rows * h_.hidden * kFloat));
  static_cast<void>(device_stream_->copy_to_device(x_.data(), x_here_.as<f32>(), rows * h_.hidden * kFloat));
}

void DeviceLane::begin(const f32* x) {
  sent_ = true;
  x_there_ = x;
  have_q8_32_ = have_q8_256_ = false;
}

// Into the form that matrices of this type want, once.
void DeviceLane::quantize(BlockType type, i64 rows) {
  ActivationForm form = weight_input(type, limits_.exact);
  if (form == ActivationForm::F32) return;
  bool& have = form == ActivationForm::Q8_32 ? have_q8_32_ : have_q8_256_;
  const DeviceBuffer& out = form == ActivationForm::Q8_32 ? q8_32_ : q8_256_;
  if (!have)
    ops_.quantize(stream_, {.x = x_there_,
                            .rows = rows,
                            .cols = h_.hidden,
                            .x_stride = h_.hidden,
                            .form = form,
                            .out = out.data().as<void>()});
  have = true;
}

void DeviceLane::post_waves(std::span<const DeviceWork> work) {
  send_lists(work);
  work_.clear();
  i64 done = 0, pairs = 0;
  size_t first = 0;
  for (const DeviceWork& w : work) {
    if (pairs + w.tokens > wave_pairs_) {
      post_wave(std::span(work_).subspan(first), done, pairs);
      first = work_.size();
      done += pairs;
      pairs = 0;
    }
    const bool neighbours = are_neighbours(w);
    work_.push_back({.gate = w.gate,
                     .up = w.up,
                     .down = w.down,
                     .rows = neighbours ? counting_.data().as<i32>() + w.rows[0] : rows_.data().as<i32>() + done + pairs,
                     .out_rows = counting_.data().as<i32>() + pairs,
                     .tokens = w.tokens});
    pairs += w.tokens;
  }
  if (pairs > 0) post_wave(std::span(work_).subspan(first), done, pairs);
}

// Where each row comes from and goes to. Rows that follow each other, as a single token's always do, are a piece of 0, 1, 2 ...,
// which is there.
void DeviceLane::send_lists(std::span<const DeviceWork> work) {
  i64 count = 0;
  bool wanted = false;
  for (const DeviceWork& w : work) {
    wanted = wanted || !are_neighbours(w);
    std::copy_n(w.rows, w.tokens, rows_here_.as<i32>() + count);
    std::copy_n(w.out_rows, w.tokens, out_rows_.begin() + count);
    count += w.tokens;
  }
  if (wanted) static_cast<void>(device_stream_->copy_to_device(rows_.data(), rows_here_.as<i32>(), count * kIndex));
}

// `first`: pairs of the waves before.
void DeviceLane::post_wave(std::span<const ExpertWork> wave, i64 first, i64 pairs) {
  post_ffn(wave, h_.expert_ffn, out_);
  static_cast<void>(device_stream_->copy_to_host(out_here_.as<f32>() + first * h_.hidden, out_.data(),
                                                 pairs * h_.hidden * kFloat));
}

void DeviceLane::post_ffn(std::span<const ExpertWork> work, i64 ffn, const DeviceBuffer& out) {
  ops_.expert_ffn(stream_, {.work = work,
                            .x = x_there_,
                            .x_q8_32 = q8_32_.data().as<void>(),
                            .x_q8_256 = q8_256_.data().as<void>(),
                            .hidden = h_.hidden,
                            .ffn = ffn,
                            .out = out.data().as<f32>(),
                            .scratch = scratch_.data().as<std::byte>(),
                            .scratch_bytes = scratch_.bytes(),
                            .exact = limits_.exact});
}

void DeviceLane::take_choice(ExpertChoice& choice) {
  const i64 count = std::exchange(routed_rows_, 0) * h_.top_k;
  if (choice_recorded_.ok()) choice_recorded_ = choice_event_->wait();
  choice.made = choice_recorded_.ok();
  if (!choice.made) return;
  std::copy_n(choice_here_.as<i32>(), count, choice.ids.begin());
  std::copy_n(reinterpret_cast<const f32*>(choice_here_.as<i32>() + count), count, choice.weights.begin());
}

Status DeviceLane::take_resident(f32* out) {
  Status status = resident_recorded_.ok() ? resident_event_->wait() : resident_recorded_;
  if (status.ok()) put_resident(out);
  return status;
}

void DeviceLane::put_resident(f32* out) {
  resident_taken_ = true;
  std::memcpy(out, resident_here_.as<f32>(), static_cast<size_t>(resident_rows_ * h_.hidden * kFloat));
}

// What a stream has posted last ends last.
Status DeviceLane::wait_for_posted() {
  Status status = std::exchange(choice_recorded_, {});
  if (status.ok() && resident_rows_ > 0) status = resident_recorded_;
  if (status.ok() && posted_) return recorded_.ok() ? event_->wait() : recorded_;
  if (status.ok() && resident_rows_ > 0 && !resident_taken_) status = resident_event_->wait();
  return status;
}

Status DeviceLane::finish(f32* out, f32* resident) {
  if (!sent_) return {};
  Status status = wait_for_posted();
  if (status.ok() && resident_rows_ > 0 && !resident_taken_) put_resident(resident);
  const bool experts = std::exchange(posted_, false);
  resident_rows_ = 0;
  sent_ = resident_taken_ = false;
  if (!status.ok()) {
    static_cast<void>(device_stream_->synchronize());
    failed_ = true;
    return status;
  }
  if (!experts) return {};
  i64 count = 0;
  for (const ExpertWork& w : work_) count += w.tokens;
  for (i64 i = 0; i < count; i++)
    std::memcpy(out + out_rows_[static_cast<size_t>(i)] * h_.hidden, out_here_.as<f32>() + i * h_.hidden,
                static_cast<size_t>(h_.hidden * kFloat));
  return {};
}

void DeviceLane::lose() {
  abandon();
  failed_ = true;
}

void DeviceLane::abandon() {
  if (!sent_) return;
  static_cast<void>(device_stream_->synchronize());  // a failure meets whoever posts next
  sent_ = posted_ = resident_taken_ = false;
  resident_rows_ = routed_rows_ = 0;
  resident_recorded_ = choice_recorded_ = {};
}

}  // namespace stoker
