#include "runtime/moe_layer.h"

#include <algorithm>
#include <numeric>

#include "kernels/base/check.h"

namespace stoker {

namespace {

f32* floats(const Buffer& buffer) { return reinterpret_cast<f32*>(buffer.data()); }

i64 scratch_bytes_needed(const Hparams& h, i64 rows) {
  // One call holds at most `rows` (token, expert) pairs, or one decode step's worth; see compute().
  return std::max(expert_scratch_bytes(rows, h.widest_resident_ffn()), expert_scratch_bytes(std::max(rows, h.top_k), h.expert_ffn));
}

Status interrupted() { return Status::failure("interrupted"); }

}  // namespace

MoeLayer::MoeLayer(const Ops& ops, const Hparams& hparams, const Limits& limits, Scheduler& scheduler, Router& router,
                   Lookahead* lookahead, std::span<DeviceLayers> lanes)
    : ops_(ops),
      h_(hparams),
      limits_(limits),
      scheduler_(scheduler),
      router_(router),
      lookahead_(lookahead),
      inputs_(ops, limits.rows * hparams.hidden),
      expert_rows_(limits.rows * hparams.top_k * hparams.hidden * i64{sizeof(f32)}, "expert outputs"),
      shared_rows_(limits.rows * hparams.hidden * i64{sizeof(f32)}, "shared expert outputs"),
      scratch_(scratch_bytes_needed(hparams, limits.rows), "FFN scratch"),
      lanes_(lanes) {
  size_t pairs = static_cast<size_t>(limits.rows * hparams.top_k);
  choice_.ids.resize(pairs);
  choice_.weights.resize(pairs);
  tiers_.reserve(pairs);
  grouped_rows_.resize(pairs);
  grouped_out_.resize(pairs);
  first_of_expert_.resize(static_cast<size_t>(hparams.experts) + 1);
  all_rows_.resize(static_cast<size_t>(limits.rows));
  std::iota(all_rows_.begin(), all_rows_.end(), 0);
  size_t experts = static_cast<size_t>(hparams.experts);
  demands_.reserve(experts);
  requests_.reserve(experts);
  ready_.reserve(experts);
  work_.reserve(experts);
  device_work_.reserve(experts);
}

i64 MoeLayer::bytes_needed(const Hparams& h, const Limits& limits) {
  return (h.top_k + 1) * limits.rows * h.hidden * i64{sizeof(f32)} + scratch_bytes_needed(h, limits.rows);
}

bool MoeLayer::begun() const {
  return std::any_of(lanes_.begin(), lanes_.end(), [](const DeviceLayers& d) { return d.lane->has_resident(); });
}

Status MoeLayer::run(Stream& stream, LayerId layer, const LayerWeights& w, i64 rows, f32* x, f32* normed,
                     StageTimer& timer, PassBreaks& breaks) {
  DCHECK(rows <= limits_.rows);
  timer.enter(Stage::rest);
  ops_.rms_norm(stream, {.x = x,
                         .weight = w.ffn_norm,
                         .y = normed,
                         .rows = rows,
                         .cols = h_.hidden,
                         .x_stride = h_.hidden,
                         .y_stride = h_.hidden,
                         .epsilon = h_.rms_epsilon});
  input_ = normed;
  inputs_.set(normed, rows, h_.hidden);
  if (!w.is_moe()) {
    Status computed = dense({stream, layer, w, rows, timer, breaks}, x);
    if (!computed.ok()) return computed;
    ops_.add(stream, x, floats(shared_rows_), rows * h_.hidden);
    if (lookahead_ != nullptr) lookahead_->look(stream, layer, x, nullptr, rows);
    return {};
  }

  DeviceLane* home = post_to_home(layer, rows);
  if (home == nullptr && !w.has_ffn()) return Status::failure(kNotInRam);
  take_choice(timer);
  router_.route({stream, layer, w, normed, rows, choice_.made}, choice_.ids.data(), choice_.weights.data());
  group_by_expert(rows);
  bool shared = w.gate.rows > 0, recorded = router_.wants_served();
  if (recorded) note_tiers(layer, rows);
  i64 waited_ns = timer.all_ns()[static_cast<size_t>(Stage::disk_wait)];
  Status read = routed({stream, layer, w, rows, timer, breaks}, x, shared, home);
  timer.enter(Stage::device_wait);
  Status computed = finish_devices();
  if (!read.ok()) return read;
  if (!computed.ok()) return computed;
  timer.enter(Stage::rest);
  if (recorded) router_.served(layer, tiers_, timer.all_ns()[static_cast<size_t>(Stage::disk_wait)] - waited_ns);
  ops_.combine(stream, {.rows = floats(expert_rows_),
                        .weights = choice_.weights.data(),
                        .shared = shared ? floats(shared_rows_) : nullptr,
                        .residual = x,
                        .tokens = rows,
                        .top_k = h_.top_k,
                        .hidden = h_.hidden});
  return {};
}

// The FFN of a layer without experts, by its home.
Status MoeLayer::dense(const Pass& pass, const f32* x) {
  DeviceLane* home = post_to_home(pass.layer, pass.rows);
  if (lookahead_ != nullptr) lookahead_->look_before_ffn(pass.stream, pass.layer, x, pass.rows);
  if (home == nullptr) {
    if (!pass.w.has_ffn()) return Status::failure(kNotInRam);
    resident_ffn(pass.stream, pass.w, pass.rows, floats(shared_rows_));
    return {};
  }
  pass.timer.enter(Stage::device_wait);
  Status computed = finish_devices();
  pass.timer.enter(Stage::rest);
  return computed;
}

// Experts in devices' memory are posted there, behind the shared expert, which `home` computes if there is one; the CPU
// computes the others. All wants are one lease, whose reads overlap; where nothing is read and others wait for their rows, it
// is one lease after the other.
Status MoeLayer::routed(const Pass& pass, const f32* x, bool shared, DeviceLane* home) {
  part_begin_ = 0;
  while (part_begin_ < requests_.size()) {
    size_t end = end_of_part(pass, part_begin_);
    // From here on reads are in flight and devices compute: the CPU's shared expert is computed in their shadow.
    {
      Scheduler::Lease lease = scheduler_.acquire(pass.layer, std::span(requests_).subspan(part_begin_, end - part_begin_));
      post_to_devices(pass.layer, pass.rows, lease.on_devices());
      if (part_begin_ == 0 && shared && home == nullptr) resident_ffn(pass.stream, pass.w, pass.rows, floats(shared_rows_));
      Ahead ahead{.x = x, .shared = shared ? floats(shared_rows_) : nullptr, .home = home, .looked = part_begin_ > 0};
      Status status = compute_as_they_land(pass, lease, ahead);
      if (!status.ok()) return status;
      pass.timer.enter(Stage::device_wait);
      if (!ahead.looked) look_ahead(pass, ahead);
    }
    part_begin_ = end;
    if (end < requests_.size() && !pass.breaks.pause()) return interrupted();
  }
  return {};
}

// As many wants as one region computes.
size_t MoeLayer::end_of_part(const Pass& pass, size_t begin) const {
  if (!pass.breaks.wanted() || !scheduler_.has_slot_for_all() || !lanes_.empty()) return requests_.size();
  size_t end = begin;
  for (i64 tokens = 0; end < requests_.size(); end++) {
    tokens += requests_[end].tokens;
    if (end > begin && tokens > region_tokens()) break;
  }
  return end;
}

Status MoeLayer::compute_as_they_land(const Pass& pass, Scheduler::Lease& lease, Ahead& ahead) {
  while (lease.pending() > 0) {
    if (!ahead.looked && (ahead.home == nullptr || ahead.home->resident_done())) look_ahead(pass, ahead);
    pass.timer.enter(Stage::disk_wait);
    ready_.clear();
    Status status = lease.wait(ready_);
    if (!status.ok()) return status;
    pass.timer.enter(Stage::experts);
    for (size_t done = 0; done < ready_.size();) {
      if (pass.breaks.interrupted()) return interrupted();
      size_t end = done + compute_some(pass, std::span(ready_).subspan(done));
      // Region by region, so that what waits for slots is read while the others are computed.
      for (; done < end; done++) lease.release(ready_[done]);
    }
    if (pass.breaks.interrupted()) return interrupted();
  }
  return {};
}

// The gate, unless it has been asked, then what does not depend on it, unless it is under way. The lane that computes the FFN
// that every row passes; none: the CPU does.
DeviceLane* MoeLayer::post_to_home(LayerId layer, i64 rows) {
  for (DeviceLayers& device : lanes_) {
    const ResidentRouter* router = device.weights.router(layer);
    const ResidentFfn* ffn = device.weights.ffn(layer);
    if (router != nullptr && !choice_.made) device.lane->post_gate(input_, rows, *router);
    if (ffn != nullptr && !device.lane->has_resident()) device.lane->post_resident(input_, rows, *ffn);
    if (device.lane->has_resident()) return device.lane.get();
  }
  return nullptr;
}

// If one was posted. After a failure, of which finish_devices() tells, the CPU asks its gate.
void MoeLayer::take_choice(StageTimer& timer) {
  for (DeviceLayers& device : lanes_) {
    if (!device.lane->has_choice()) continue;
    timer.enter(Stage::device_wait);
    device.lane->take_choice(choice_);
    timer.enter(Stage::rest);
  }
}

void MoeLayer::post_to_devices(LayerId layer, i64 rows, std::span<const DeviceExpert> experts) {
  for (size_t d = 0; d < lanes_.size(); d++) {
    device_work_.clear();
    for (const DeviceExpert& e : experts) {
      if (static_cast<size_t>(e.device) != d) continue;
      auto address = [&](ExpertMatrix which) {
        return (lanes_[d].arena.data() + e.at_device[static_cast<size_t>(which)]).as<const std::byte>();
      };
      ExpertWork work = work_for(layer, {.request = e.request,
                                         .gate = address(ExpertMatrix::gate),
                                         .up = address(ExpertMatrix::up),
                                         .down = address(ExpertMatrix::down)});
      device_work_.push_back({work.gate, work.up, work.down, work.rows, work.out_rows, work.tokens});
    }
    lanes_[d].lane->post(input_, rows, device_work_);
  }
}

// Also after a failure: what was posted must have ended before the next layer is.
Status MoeLayer::finish_devices() {
  Status result;
  for (size_t d = 0; d < lanes_.size(); d++) {
    Status status = lanes_[d].lane->finish(floats(expert_rows_), floats(shared_rows_));
    if (status.ok()) continue;
    scheduler_.lose_device(static_cast<i64>(d));
    if (result.ok()) result = Status::failure(status.message() + kElsewhere);
  }
  return result;
}

void MoeLayer::note_tiers(LayerId layer, i64 rows) {
  scheduler_.tend();
  tiers_.clear();
  for (i64 i = 0; i < rows * h_.top_k; i++) tiers_.push_back(scheduler_.tier(layer, ExpertId(choice_.ids[static_cast<size_t>(i)])));
}

// While this layer's experts are read. Predictions from the sum with the shared expert's output wait for its home.
void MoeLayer::look_ahead(const Pass& pass, Ahead& ahead) {
  ahead.looked = true;
  if (lookahead_ == nullptr) return;
  const bool shared = lookahead_->wants_shared();
  if (shared && ahead.home != nullptr && !ahead.home->take_resident(floats(shared_rows_)).ok()) return;  // finish_devices() tells
  pass.timer.enter(Stage::rest);
  size_t pairs = static_cast<size_t>(pass.rows * h_.top_k);
  lookahead_->observe(pass.layer, std::span(choice_.ids).first(pairs), std::span(choice_.weights).first(pairs), pass.rows);
  lookahead_->look(pass.stream, pass.layer, ahead.x, shared ? ahead.shared : nullptr, pass.rows);
}

// The dense FFN of a layer without experts, or the shared experts (one wide FFN): the same thing on all rows.
void MoeLayer::resident_ffn(Stream& stream, const LayerWeights& w, i64 rows, f32* out) {
  ExpertWork work{.gate = w.gate, .up = w.up, .down = w.down, .rows = all_rows_.data(), .out_rows = all_rows_.data(),
                  .tokens = rows};
  gated_ffn(stream, {&work, 1}, w.gate.rows, out);
}

// Counting sort of the (row, rank) pairs by expert; within an expert, rows stay in order.
void MoeLayer::group_by_expert(i64 rows) {
  i64 pairs = rows * h_.top_k;
  std::fill(first_of_expert_.begin(), first_of_expert_.end(), 0);
  for (i64 i = 0; i < pairs; i++) first_of_expert_[static_cast<size_t>(choice_.ids[static_cast<size_t>(i)]) + 1]++;
  std::partial_sum(first_of_expert_.begin(), first_of_expert_.end(), first_of_expert_.begin());

  demands_.clear();
  requests_.clear();
  for (i64 e = 0; e < h_.experts; e++) {
    i64 first = first_of_expert_[static_cast<size_t>(e)];
    i64 tokens = first_of_expert_[static_cast<size_t>(e) + 1] - first;
    if (tokens == 0) continue;
    demands_.push_back({ExpertId(e), first, tokens});
    requests_.push_back({ExpertId(e), static_cast<i32>(tokens), 0.f});
  }
  // first_of_expert_ now serves as the next free place of each expert.
  std::vector<i64>& next = first_of_expert_;
  for (i64 i = 0; i < pairs; i++) {
    size_t expert = static_cast<size_t>(choice_.ids[static_cast<size_t>(i)]);
    size_t at = static_cast<size_t>(next[expert]++);
    grouped_rows_[at] = static_cast<i32>(i / h_.top_k);
    grouped_out_[at] = static_cast<i32>(i);
  }
  for (size_t d = 0; d < demands_.size(); d++)
    for (i64 i = 0; i < demands_[d].tokens; i++)
      requests_[d].gate_weight += choice_.weights[static_cast<size_t>(grouped_out_[static_cast<size_t>(demands_[d].first + i)])];
}

ExpertWork MoeLayer::work_for(LayerId layer, const ReadyExpert& ready) const {
  const Demand& demand = demands_[part_begin_ + static_cast<size_t>(ready.request)];
  auto matrix = [&](const std::byte* data, ExpertMatrix which, i64 rows, i64 cols) {
    return Matrix{data, scheduler_.table().extent(layer, demand.expert, which).type, rows, cols};
  };
  return {.gate = matrix(ready.gate, ExpertMatrix::gate, h_.expert_ffn, h_.hidden),
          .up = matrix(ready.up, ExpertMatrix::up, h_.expert_ffn, h_.hidden),
          .down = matrix(ready.down, ExpertMatrix::down, h_.hidden, h_.expert_ffn),
          .rows = grouped_rows_.data() + demand.first,
          .out_rows = grouped_out_.data() + demand.first,
          .tokens = demand.tokens};
}

// As many of `ready` as the scratch allows, in one region: all in decode, some of a prompt chunk. How many.
size_t MoeLayer::compute_some(const Pass& pass, std::span<const ReadyExpert> ready) {
  work_.clear();
  for (i64 tokens = 0; work_.size() < ready.size();) {
    ExpertWork work = work_for(pass.layer, ready[work_.size()]);
    tokens += work.tokens;
    if (tokens > region_tokens()) break;
    work_.push_back(work);
  }
  gated_ffn(pass.stream, work_, h_.expert_ffn, floats(expert_rows_));
  return work_.size();
}

void MoeLayer::gated_ffn(Stream& stream, std::span<const ExpertWork> work, i64 ffn, f32* out) {
  ExpertFfnArgs args{.work = work,
                     .x = input_,
                     .x_q8_32 = nullptr,
                     .x_q8_256 = nullptr,
                     .hidden = h_.hidden,
                     .ffn = ffn,
                     .out = out,
                     .scratch = scratch_.data(),
                     .scratch_bytes = scratch_.bytes(),
                     .exact = limits_.exact};
  for (const ExpertWork& w : work) {
    for (BlockType type : {w.gate.type, w.up.type}) {
      ActivationForm form = weight_input(type, limits_.exact);
      if (form == ActivationForm::Q8_32) args.x_q8_32 = inputs_.as(stream, form).x;
      if (form == ActivationForm::Q8_256) args.x_q8_256 = inputs_.as(stream, form).x;
    }
  }
  ops_.expert_ffn(stream, args);
}

}  // namespace stoker
