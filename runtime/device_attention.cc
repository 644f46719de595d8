#include "runtime/device_attention.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/check.h"
#include "runtime/device_heads.h"

namespace stoker {

namespace {

constexpr i64 kFloat = sizeof(f32), kIndex = sizeof(i32);
constexpr i64 kHandedRows = 8;  // at most; copies carry more of them faster

// With positions, ids and weights.
i64 x_bytes(const Hparams& h, const DeviceAttention::Limits& l) {
  return l.rows * (h.hidden * kFloat + kIndex + h.top_k * (kIndex + kFloat));
}
i64 logits_bytes(const Hparams& h, const DeviceAttention::Limits& l) { return l.rows * h.experts * kFloat; }

AttentionLayer::Limits layer_limits(const Ops& ops, const Hparams& h, const DeviceAttention::Limits& l) {
  return {.rows = l.rows,
          .generated_rows = l.generated_rows,
          .context = l.context,
          .workers = 1,
          .exact = l.exact,
          .op_scratch_bytes = ops.attention_scratch_bytes({.rows = l.rows,
                                                           .generated = l.generated_rows,
                                                           .context = l.context,
                                                           .heads = h.heads,
                                                           .nope = h.nope,
                                                           .rope = h.rope,
                                                           .latent = h.latent,
                                                           .v = h.v,
                                                           .cache = l.cache})};
}

std::vector<i64> places(const DeviceWeights& weights, i64 layers) {
  std::vector<i64> places;
  i64 next = 0;
  for (i64 l = 0; l < layers; l++) places.push_back(weights.attention(LayerId(l)) != nullptr ? next++ : -1);
  return places;
}

}  // namespace

bool DeviceAttention::possible(const Ops& ops, const Hparams& hparams, const Limits& limits) {
  return ops.attention_scratch_bytes != nullptr && layer_limits(ops, hparams, limits).op_scratch_bytes > 0;
}

i64 DeviceAttention::cache_bytes_needed(const Hparams& h, const Limits& l) {
  return l.sequences * stoker::cache_bytes(l.cache, l.context * h.cache_row());
}

i64 DeviceAttention::bytes_needed(const Ops& ops, const Hparams& h, const Limits& l) {
  constexpr i64 kParts = 6, kAlignment = 256;
  return x_bytes(h, l) + logits_bytes(h, l) + l.rows * h.hidden * kFloat + static_cast<i64>(h.rope_frequencies.size()) * kFloat +
         AttentionLayer::bytes_needed(ops, h, layer_limits(ops, h, l)) + kParts * kAlignment;
}

DeviceAttention::DeviceAttention(Device& device, const Ops& ops, IsaLevel level, const Hparams& h, const Limits& l,
                                 const DeviceWeights& weights)
    : ops_(ops),
      h_(h),
      limits_(l),
      weights_(weights),
      row_bytes_(stoker::cache_bytes(l.cache, h.cache_row())),
      place_of_layer_(places(weights, h.layers)),
      x_here_(device, x_bytes(h, l), "rows for a device", PinnedUse::mapped),
      rows_here_(device, l.rows * row_bytes_, "rows of a cache from a device", PinnedUse::mapped),
      handed_over_(device),
      x_(device, x_bytes(h, l), "rows"),
      normed_(device, l.rows * h.hidden * kFloat, "rows"),
      logits_(device, logits_bytes(h, l), "logits of experts"),
      frequencies_(device, static_cast<i64>(h.rope_frequencies.size()) * kFloat, "rotation frequencies"),
      scratch_(device, AttentionLayer::bytes_needed(ops, h, layer_limits(ops, h, l)), "attention"),
      cache_(device, weights.attention_layers() * cache_bytes_needed(h, l), "the KV cache"),
      attention_(ops, h, layer_limits(ops, h, l), scratch_.data().as<std::byte>(), frequencies_.data().as<f32>()),
      copied_(device.make_event()),
      computed_(device.make_event()),
      device_stream_(device.make_stream()),
      stream_(*device_stream_, level) {
  runs_.reserve(static_cast<size_t>(l.rows));
  i64 bytes = frequencies_.bytes();
  PinnedBuffer staging(device, bytes, "rotation frequencies");
  std::memcpy(staging.as<f32>(), h.rope_frequencies.data(), static_cast<size_t>(bytes));
  Status status = device_stream_->copy_to_device(frequencies_.data(), staging.as<f32>(), bytes);
  if (status.ok()) status = device_stream_->synchronize();
  if (!status.ok()) throw Error(status.message());
}

void DeviceAttention::share_heads(DeviceHeads& others) {
  others_ = &others;
  attention_.share_heads(&others);
}

std::byte* DeviceAttention::latents(LayerId layer, SequenceId sequence) const {
  i64 place = place_of_layer_[static_cast<size_t>(layer.value)];
  DCHECK(place >= 0);
  return (cache_.data() + (place * limits_.sequences + sequence.value) * limits_.context * row_bytes_).as<std::byte>();
}

void DeviceAttention::post(LayerId layer, const AttentionLayer::Batch& batch, const f32* x, DeviceLane& lane,
                           StageTimer& timer) {
  layer_ = layer;
  rows_ = batch.rows;
  runs_.assign(batch.runs.begin(), batch.runs.end());
  for (SequenceRun& run : runs_) run.latents = latents(layer, run.sequence);
  if (others_ != nullptr) others_->begin(place_of_layer_[static_cast<size_t>(layer.value)], runs_);
  try {
    post_all(batch, x, lane, timer);
  } catch (const Error& e) {  // by which an op says that its card cannot be used any more
    recorded_ = Status::failure(e.what());
  }
}

// What goes wrong here breaks the stream, so finish() hears of it.
void DeviceAttention::post_all(const AttentionLayer::Batch& batch, const f32* x, DeviceLane& lane, StageTimer& timer) {
  device_stream_->label("attention");
  for (const SequenceRun& run : runs_) bring_up(run);
  std::byte* here = x_here_.as<std::byte>();
  std::memcpy(here, x, static_cast<size_t>(positions_at()));
  std::memcpy(here + positions_at(), batch.positions, static_cast<size_t>(rows_ * kIndex));
  static_cast<void>(device_stream_->copy_to_device(x_.data(), here, ids_at()));

  // Steps are posted faster than anybody would want to come between.
  const std::function<void()> nothing;
  PassBreaks unbroken(timer, nullptr, nothing);
  AttentionLayer::Batch there{runs_, (x_.data() + positions_at()).as<const i32>(), rows_};
  f32 *stream = x_.data().as<f32>(), *change = normed_.data().as<f32>();
  attention_.run(stream_, *weights_.attention(layer_), there, stream, change, unbroken);

  const ResidentRouter* router = weights_.router(layer_);
  const ResidentFfn* ffn = weights_.ffn(layer_);
  routed_ = router != nullptr;
  if (!routed_) {
    ops_.add(stream_, stream, change, rows_ * h_.hidden);
  } else {
    post_gate(*router, ffn != nullptr ? lane.wanted_rows(*ffn) : DeviceLane::EightBitRows{});
  }
  hands_over_ = can_hand_over();
  if (hands_over_) hand_over();
  // The FFN comes behind what the CPU waits for, and beside copies of it.
  recorded_ = device_stream_->record(*computed_);
  if (recorded_.ok() && !hands_over_) copy_back();
  if (recorded_.ok() && routed_ && ffn != nullptr) lane.post_resident(change, rows_, *ffn, *computed_);
}

// What a block writes at once, and what its list has room for.
bool DeviceAttention::can_hand_over() const {
  const bool mapped = handed_over_.usable() && x_here_.mapped() && rows_here_.mapped();
  return mapped && rows_ <= kHandedRows && std::ssize(runs_) < HandOverArgs::kMostPieces;
}

void DeviceAttention::hand_over() {
  device_stream_->label("hand-over");
  HandOverArgs args{.flag = handed_over_.at_device(), .value = handed_over_.next()};
  args.pieces[args.count++] = {x_.data().as<void>(), x_here_.mapped().as<void>(), bytes_back()};
  for (const SequenceRun& run : runs_)
    args.pieces[args.count++] = {cache_rows(run).as<void>(), (rows_here_.mapped() + run.first_row * row_bytes_).as<void>(),
                                 run.rows * row_bytes_};
  ops_.hand_over(stream_, args);
}

void DeviceAttention::copy_back() {
  static_cast<void>(device_stream_->copy_to_host(x_here_.as<std::byte>(), x_.data(), bytes_back()));
  for (const SequenceRun& run : runs_)
    static_cast<void>(device_stream_->copy_to_host(rows_here_.as<std::byte>() + run.first_row * row_bytes_, cache_rows(run),
                                                   run.rows * row_bytes_));
  recorded_ = device_stream_->record(*copied_);
}

// Adds attention's change to the stream, norms that, for the FFN too, and asks.
void DeviceAttention::post_gate(const ResidentRouter& router, const DeviceLane::EightBitRows& rows) {
  device_stream_->label("router");
  ops_.rms_norm(stream_, {.x = normed_.data().as<f32>(),
                          .weight = router.norm,
                          .y = normed_.data().as<f32>(),
                          .rows = rows_,
                          .cols = h_.hidden,
                          .x_stride = h_.hidden,
                          .y_stride = h_.hidden,
                          .epsilon = h_.rms_epsilon,
                          .residual = x_.data().as<f32>(),
                          .y_q8_32 = rows.q8_32,
                          .y_q8_256 = rows.q8_256});
  choose_experts(ops_, stream_, h_,
                 {.router = router.matrix,
                  .bias = router.bias,
                  .x = normed_.data().as<f32>(),
                  .tokens = rows_,
                  .logits = logits_.data().as<f32>(),
                  .ids = (x_.data() + ids_at()).as<i32>(),
                  .weights = (x_.data() + weights_at()).as<f32>()});
}

// Rare, so it waits for each piece.
void DeviceAttention::bring_up(const SequenceRun& run) {
  for (i64 at = run.cache->shared(); at < run.position;) {
    i64 rows = std::min(run.position - at, limits_.rows);
    std::memcpy(rows_here_.as<std::byte>(), run.cache->row(layer_, at), static_cast<size_t>(rows * row_bytes_));
    static_cast<void>(device_stream_->copy_to_device({reinterpret_cast<u64>(run.latents + at * row_bytes_)},
                                                     rows_here_.as<std::byte>(), rows * row_bytes_));
    if (!device_stream_->synchronize().ok()) return;
    at += rows;
  }
}

Status DeviceAttention::finish(f32* x, ExpertChoice& choice) {
  Status status = recorded_;
  if (!status.ok())
    static_cast<void>(device_stream_->synchronize());
  else
    status = hands_over_ ? handed_over_.wait(*device_stream_) : copied_->wait();
  if (!status.ok()) return status;
  const std::byte* here = x_here_.as<std::byte>();
  std::memcpy(x, here, static_cast<size_t>(positions_at()));
  choice.made = routed_;
  if (routed_) {
    std::memcpy(choice.ids.data(), here + ids_at(), static_cast<size_t>(rows_ * h_.top_k * kIndex));
    std::memcpy(choice.weights.data(), here + weights_at(), static_cast<size_t>(rows_ * h_.top_k * kFloat));
  }
  for (const SequenceRun& run : runs_)
    std::memcpy(run.cache->row(layer_, run.position), rows_here_.as<std::byte>() + run.first_row * row_bytes_,
                static_cast<size_t>(run.rows * row_bytes_));
  return {};
}

}  // namespace stoker
