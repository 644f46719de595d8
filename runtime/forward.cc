#include "runtime/forward.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/device/stream.h"
#include "scheduler/forecaster.h"

namespace stoker {

namespace {

f32* floats(const Buffer& buffer) { return reinterpret_cast<f32*>(buffer.data()); }

AttentionLayer::Limits attention_limits(const Hparams& h, const Forward::Limits& limits, int workers) {
  i64 generated = Forward::generated_rows(limits.rows, limits.sequences);
  return {.rows = limits.rows,
          .generated_rows = generated,
          .context = limits.context,
          .workers = workers,
          .exact = limits.exact,
          .op_scratch_bytes =
              std::max(latent_attention_scratch_bytes(workers, generated, h.heads, h.latent, h.rope, limits.context),
                       prompt_attention_scratch_bytes(workers, limits.rows, h.nope, h.rope, h.latent, h.v))};
}

}  // namespace

Forward::Forward(const Ops& ops, Stream& stream, const Hparams& hparams, const Weights& weights, Scheduler& scheduler,
                 Router& router, const Limits& limits, Lookahead* lookahead, std::span<DeviceLayers> devices)
    : ops_(ops),
      stream_(stream),
      h_(hparams),
      weights_(weights),
      router_(router),
      scheduler_(scheduler),
      devices_(devices),
      limits_(limits),
      x_(limits.rows * hparams.hidden * i64{sizeof(f32)}, "hidden states"),
      normed_(limits.rows * hparams.hidden * i64{sizeof(f32)}, "hidden states"),
      attention_memory_(AttentionLayer::bytes_needed(ops, hparams, attention_limits(hparams, limits, stream.workers().size())),
                        "attention"),
      head_inputs_(ops, limits.rows * hparams.hidden),
      attention_(ops, hparams, attention_limits(hparams, limits, stream.workers().size()), attention_memory_.data(),
                 hparams.rope_frequencies.data()),
      moe_(ops, hparams, {.rows = limits.rows, .exact = limits.exact}, scheduler, router, lookahead, devices) {
  runs_.reserve(static_cast<size_t>(limits.rows));
  positions_.resize(static_cast<size_t>(limits.rows));
}

i64 Forward::bytes_needed(const Ops& ops, const Hparams& h, const Limits& limits, int workers) {
  return 2 * limits.rows * h.hidden * i64{sizeof(f32)} +
         AttentionLayer::bytes_needed(ops, h, attention_limits(h, limits, workers)) +
         MoeLayer::bytes_needed(h, {.rows = limits.rows, .exact = limits.exact});
}

i64 Forward::scratch_bytes() const { return bytes_needed(ops_, h_, limits_, stream_.workers().size()); }

Status Forward::run(std::span<const BatchRow> rows, std::span<KvCache* const> caches, std::span<f32> logits,
                    StageTimer& timer, const std::atomic<bool>* interrupt,
                    const std::function<void()>& between) {
  CHECK(!rows.empty() && static_cast<i64>(rows.size()) <= limits_.rows);
  i64 count = static_cast<i64>(rows.size());
  split_into_runs(rows, caches);
  router_.begin_batch(rows);
  timer.start(Stage::rest);
  i64 before_ns = timer.total_ns();
  embed(rows);
  bool decode = count == static_cast<i64>(runs_.size());
  bool piece = !decode && !Forecaster::handles(count);  // what the forecaster handles is read by its hints
  if (piece) scheduler_.begin_piece(count);
  PassBreaks breaks(timer, interrupt, between, piece && !scheduler_.has_slot_for_all() ? &scheduler_ : nullptr);
  for (i64 i = 0; i < h_.layers; i++) {
    const LayerWeights& w = weights_.layers()[static_cast<size_t>(i)];
    timer.enter(Stage::attention);
    scheduler_.tend();
    Status status = attend(LayerId(i), count, timer, breaks);
    // Nobody comes between a home that computes the FFN already and who takes it.
    if (status.ok() && (moe_.begun() || breaks.pause()))
      status = moe_.run(stream_, LayerId(i), w, count, floats(x_), floats(normed_), timer, breaks);
    if (status.ok() && piece && w.is_moe()) {
      finish_epoch();
      scheduler_.end_piece_layer(LayerId(i), count);
    }
    if (status.ok() && !breaks.pause()) status = Status::failure("interrupted");
    if (!status.ok()) {
      for (DeviceLayers& device : devices_) device.lane->abandon();
      if (piece) scheduler_.end_piece();
      timer.stop();
      return status;
    }
  }
  if (piece) scheduler_.end_piece();
  timer.enter(Stage::rest);
  Status status = output_head(rows, logits, timer);
  if (!status.ok()) {
    timer.stop();
    return status;
  }
  for (const SequenceRun& run : runs_) {
    run.cache->set_length(run.position + run.rows);
    run.cache->share();
  }
  timer.stop();
  finish_epoch();
  scheduler_.end_pass(count, timer.total_ns() - before_ns, decode);
  return {};
}

// Every layer has waited for its devices.
void Forward::finish_epoch() {
  for (i64 d = 0; d < static_cast<i64>(devices_.size()); d++) scheduler_.finish_epoch(d, scheduler_.epoch());
}

// By the layer's home, which asks the gate too, or the CPU. Failure: it was interrupted, or the device is lost, which the
// scheduler then knows.
Status Forward::attend(LayerId layer, i64 rows, StageTimer& timer, PassBreaks& breaks) {
  AttentionLayer::Batch batch{runs_, positions_.data(), rows};
  moe_.choice().made = false;
  for (size_t d = 0; d < devices_.size(); d++) {
    DeviceAttention* home = devices_[d].attention_of(layer);
    if (home == nullptr) continue;
    home->post(layer, batch, floats(x_), *devices_[d].lane, timer);
    timer.enter(Stage::device_wait);
    Status status = home->finish(floats(x_), moe_.choice());
    if (status.ok()) return {};
    devices_[d].lane->lose();
    scheduler_.lose_device(static_cast<i64>(d));
    return Status::failure(status.message() + kElsewhere);
  }
  for (SequenceRun& run : runs_) run.latents = run.cache->row(layer, 0);
  const LayerWeights& w = weights_.layers()[static_cast<size_t>(layer.value)];
  if (!w.has_attention()) return Status::failure(kNotInRam);
  if (!attention_.run(stream_, w, batch, floats(x_), floats(normed_), breaks)) return Status::failure("interrupted");
  ops_.add(stream_, floats(x_), floats(normed_), rows * h_.hidden);
  return {};
}

void Forward::split_into_runs(std::span<const BatchRow> rows, std::span<KvCache* const> caches) {
  runs_.clear();
  i64 generated = 0;
  for (size_t i = 0; i < rows.size(); i++) {
    const BatchRow& row = rows[i];
    positions_[i] = row.position;
    bool continues = i > 0 && row.sequence == rows[i - 1].sequence;
    generated = (continues ? generated : 0) + (row.role == RowRole::generated);
    CHECK(generated <= BatchRow::kGeneratedRows);
    KvCache* cache = caches[static_cast<size_t>(row.sequence.value)];
    CHECK(row.position == (continues ? rows[i - 1].position + 1 : cache->length()));
    if (continues && row.role == rows[i - 1].role)
      runs_.back().rows++;
    else
      runs_.push_back({cache, row.sequence, static_cast<i64>(i), 1, row.position, row.role});
  }
  for (const SequenceRun& run : runs_) CHECK(run.position + run.rows <= run.cache->context());
}

void Forward::embed(std::span<const BatchRow> rows) {
  const Matrix& table = weights_.embedding();
  i64 bytes = row_bytes(table.type, h_.hidden);
  for (size_t i = 0; i < rows.size(); i++) {
    CHECK(rows[i].token >= 0 && rows[i].token < h_.vocab);
    const std::byte* from = static_cast<const std::byte*>(table.data) + rows[i].token * bytes;
    ops_.dequantize(stream_, table.type, from, floats(x_) + static_cast<i64>(i) * h_.hidden, h_.hidden);
  }
}

// By devices, each its part of the vocabulary, and the CPU. Failure: a device is lost, as in attend().
Status Forward::output_head(std::span<const BatchRow> rows, std::span<f32> logits, StageTimer& timer) {
  i64 wanted = 0;
  for (size_t i = 0; i < rows.size(); i++) {
    if (!rows[i].logits) continue;
    // The rows that matter move to the front of normed_, so that the vocabulary is multiplied with them alone.
    ops_.rms_norm(stream_, {.x = floats(x_) + static_cast<i64>(i) * h_.hidden,
                            .weight = weights_.output_norm(),
                            .y = floats(normed_) + wanted * h_.hidden,
                            .rows = 1,
                            .cols = h_.hidden,
                            .x_stride = h_.hidden,
                            .y_stride = h_.hidden,
                            .epsilon = h_.rms_epsilon});
    wanted++;
  }
  if (wanted == 0) return {};
  CHECK(static_cast<i64>(logits.size()) == wanted * h_.vocab);
  head_inputs_.set(floats(normed_), wanted, h_.hidden);
  if (!rest_of_head(logits.data())) return Status::failure(kNotInRam);
  bool on_devices = std::any_of(devices_.begin(), devices_.end(), [](const DeviceLayers& d) { return d.head_part() != nullptr; });
  for (i64 at = 0; on_devices && at < wanted; at += DeviceHead::kRows) {
    for (DeviceLayers& device : devices_)
      if (DeviceHead* part = device.head_part())
        part->post(floats(normed_) + at * h_.hidden, std::min(DeviceHead::kRows, wanted - at));
    timer.enter(Stage::device_wait);
    Status status = finish_heads(logits.data() + at * h_.vocab);
    timer.enter(Stage::rest);
    if (!status.ok()) return status;
  }
  return {};
}

// Of all devices, also after a failure: nothing may be under way when the next pass begins.
Status Forward::finish_heads(f32* logits) {
  Status result;
  for (size_t d = 0; d < devices_.size(); d++) {
    DeviceHead* part = devices_[d].head_part();
    if (part == nullptr) continue;
    Status status = part->finish(logits);
    if (status.ok()) continue;
    devices_[d].lane->lose();
    scheduler_.lose_device(static_cast<i64>(d));
    if (result.ok()) result = Status::failure(status.message() + kElsewhere);
  }
  return result;
}

// What is no device's, or a lost one's: all rows at once. False: it is not in RAM.
bool Forward::rest_of_head(f32* logits) {
  for (const HeadPart& part : weights_.head()) {
    if (part.device >= 0 && devices_[static_cast<size_t>(part.device)].head_part() != nullptr) continue;
    if (part.weights.data == nullptr) return false;
    head_inputs_.multiply(stream_, part.weights, limits_.exact, logits + part.first_row, h_.vocab);
  }
  return true;
}

}  // namespace stoker
