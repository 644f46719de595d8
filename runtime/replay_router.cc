#include "runtime/replay_router.h"

#include "kernels/base/error.h"
#include "kernels/format/f16.h"
#include "runtime/recording_router.h"
#include "scheduler/trace/synthetic_routing.h"
#include "scheduler/trace/trace_reader.h"

namespace stoker {

namespace {

constexpr std::string_view kSynthetic = "synthetic:";
constexpr i64 kSyntheticTokens = 2048, kSyntheticPrompts = 4;

}  // namespace

std::unique_ptr<TraceSource> open_routing(const std::string& what, const Hparams& hparams) {
  if (!what.starts_with(kSynthetic)) return std::make_unique<TraceReader>(what);
  SyntheticOptions options{.shape = trace_header(hparams), .profile = std::string_view(what).substr(kSynthetic.size()),
                           .tokens = kSyntheticTokens, .prompts = kSyntheticPrompts};
  return std::make_unique<SyntheticRouting>(options);
}

ReplayRouter::ReplayRouter(Router& gate, const Hparams& hparams, TraceSource& source, const std::string& what)
    : gate_(gate), dense_layers_(hparams.dense_layers), trace_layers_(source.header().layers), top_k_(hparams.top_k) {
  const TraceHeader& h = source.header();
  if (h.experts != hparams.experts || h.top_k != hparams.top_k)
    fail("--routing {}: its tokens use {} of {} experts, the model's {} of {}; give a trace of such a model, or "
         "synthetic:default",
         what, h.top_k, h.experts, hparams.top_k, hparams.experts);
  for (TraceRecord record; records_ < kMostRecords && source.next(record); records_++) {
    ids_.insert(ids_.end(), record.ids.begin(), record.ids.end());
    for (f32 weight : record.weights) weights_.push_back(f32_to_f16(weight));
  }
  if (records_ == 0) fail("--routing {}: the trace has no record", what);
}

void ReplayRouter::begin_batch(std::span<const BatchRow> rows) {
  gate_.begin_batch(rows);
  first_of_batch_ = next_;
  next_ = (next_ + static_cast<i64>(rows.size())) % records_;
}

void ReplayRouter::route(Stream& stream, LayerId layer, const LayerWeights& weights, const f32* x, i64 tokens, i32* ids,
                         f32* gate_weights) {
  gate_.route(stream, layer, weights, x, tokens, ids, gate_weights);
  i64 trace_layer = (layer.value - dense_layers_) % trace_layers_;
  for (i64 t = 0; t < tokens; t++) {
    i64 record = (first_of_batch_ + t) % records_;
    size_t from = static_cast<size_t>((record * trace_layers_ + trace_layer) * top_k_);
    for (i64 k = 0; k < top_k_; k++) {
      ids[t * top_k_ + k] = ids_[from + static_cast<size_t>(k)];
      gate_weights[t * top_k_ + k] = f16_to_f32(weights_[from + static_cast<size_t>(k)]);
    }
  }
}

}  // namespace stoker
