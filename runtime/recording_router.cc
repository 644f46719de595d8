#include "runtime/recording_router.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/log.h"

namespace stoker {

TraceHeader trace_header(const Hparams& h) {
  TraceHeader header{.model_name = h.name, .layers = h.moe_layers(), .first_layer = h.dense_layers, .experts = h.experts,
                     .top_k = h.top_k, .groups = h.groups, .groups_used = h.groups_used};
  header.model_hash = trace_model_hash(header);
  return header;
}

RecordingRouter::RecordingRouter(Router& router, const Hparams& hparams, const std::string& path, i64 max_tokens)
    : router_(router),
      header_(trace_header(hparams)),
      writer_(std::make_unique<TraceWriter>(path, header_)),
      records_(static_cast<size_t>(max_tokens)) {
  for (TraceRecord& record : records_) record.resize(header_);
}

// A token that comes alone in its sequence's pass is taken for a generated one.
void RecordingRouter::begin_batch(std::span<const BatchRow> rows) {
  router_.begin_batch(rows);
  CHECK(rows.size() <= records_.size());
  for (size_t i = 0; i < rows.size(); i++) {
    bool with_neighbour = (i > 0 && rows[i - 1].sequence == rows[i].sequence) ||
                          (i + 1 < rows.size() && rows[i + 1].sequence == rows[i].sequence);
    records_[i].sequence = rows[i].sequence.value;
    records_[i].position = rows[i].position;
    records_[i].token = rows[i].token;
    records_[i].phase = with_neighbour ? TracePhase::prompt : TracePhase::decode;
  }
}

void RecordingRouter::route(Stream& stream, LayerId layer, const LayerWeights& weights, const f32* x, i64 tokens, i32* ids,
                            f32* gate_weights) {
  router_.route(stream, layer, weights, x, tokens, ids, gate_weights);
  if (writer_ == nullptr) return;
  i64 index = layer.value - header_.first_layer, k = header_.top_k;
  for (i64 t = 0; t < tokens; t++) {
    TraceRecord& record = records_[static_cast<size_t>(t)];
    for (i64 i = 0; i < k; i++) record.ids[static_cast<size_t>(index * k + i)] = static_cast<u16>(ids[t * k + i]);
    std::copy_n(gate_weights + t * k, k, record.weights.begin() + index * k);
  }
  if (index + 1 == header_.layers) write(tokens);
}

// Flushed with every pass: a chat may wait for its user for long, and then be killed.
void RecordingRouter::write(i64 tokens) {
  Status status;
  for (i64 t = 0; t < tokens && status.ok(); t++) status = writer_->append(records_[static_cast<size_t>(t)]);
  if (status.ok()) status = writer_->flush();
  if (status.ok()) return;
  log_warning("{}", status.message());
  writer_.reset();
}

}  // namespace stoker
