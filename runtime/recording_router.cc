#include "runtime/recording_router.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/log.h"
#include "runtime/lookahead.h"

namespace stoker {

namespace {

constexpr i64 kStallUnitNs = 10'000, kLongestStall = 65535;
constexpr f32 kLeastLikelihood = 1e-4f;  // 0 would say that there was no guess

}  // namespace

TraceHeader trace_header(const Hparams& h) {
  TraceHeader header{.model_name = h.name, .layers = h.moe_layers(), .first_layer = h.dense_layers, .experts = h.experts,
                     .top_k = h.top_k, .groups = h.groups, .groups_used = h.groups_used};
  header.model_hash = trace_model_hash(header);
  return header;
}

static TraceHeader recorded_header(const Hparams& h, bool details) {
  TraceHeader header = trace_header(h);
  header.has_served = header.has_stalls = details;
  header.guesses = details ? ranking_width(h.experts, h.top_k, 1) : 0;
  return header;
}

RecordingRouter::RecordingRouter(Router& router, const Hparams& hparams, const std::string& path, i64 max_tokens, bool details)
    : router_(router),
      header_(recorded_header(hparams, details)),
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

void RecordingRouter::route(const RoutedRows& rows, i32* ids, f32* gate_weights) {
  router_.route(rows, ids, gate_weights);
  if (writer_ == nullptr) return;
  i64 index = rows.layer.value - header_.first_layer, k = header_.top_k;
  for (i64 t = 0; t < rows.tokens; t++) {
    TraceRecord& record = records_[static_cast<size_t>(t)];
    for (i64 i = 0; i < k; i++) record.ids[static_cast<size_t>(index * k + i)] = static_cast<u16>(ids[t * k + i]);
    std::copy_n(gate_weights + t * k, k, record.weights.begin() + index * k);
    if (header_.guesses > 0) note_guesses(index, t, record);
  }
  if (index + 1 == header_.layers && !header_.has_stalls) write(rows.tokens);
}

// The layer's forecast ends when the lookahead is told what was chosen: later.
void RecordingRouter::note_guesses(i64 index, i64 token, TraceRecord& record) {
  std::span<const LikelyExpert> guesses;
  if (lookahead_ != nullptr) guesses = lookahead_->guesses(index, token, header_.guesses);
  for (size_t i = 0; i < static_cast<size_t>(header_.guesses); i++) {
    size_t at = static_cast<size_t>(index * header_.guesses) + i;
    record.guesses[at] = i < guesses.size() ? static_cast<u16>(guesses[i].expert.value) : u16{0};
    record.likelihoods[at] = i < guesses.size() ? std::max(guesses[i].probability, kLeastLikelihood) : 0;
  }
}

void RecordingRouter::served(LayerId layer, std::span<const ExpertTier> tiers, i64 stall_ns) {
  i64 index = layer.value - header_.first_layer, k = header_.top_k, tokens = static_cast<i64>(tiers.size()) / k;
  for (i64 t = 0; t < tokens; t++) {
    TraceRecord& record = records_[static_cast<size_t>(t)];
    for (i64 i = 0; i < k; i++) record.served[static_cast<size_t>(index * k + i)] = static_cast<u8>(tiers[static_cast<size_t>(t * k + i)]);
    record.stalls[static_cast<size_t>(index)] = static_cast<u16>(std::min(stall_ns / kStallUnitNs, kLongestStall));
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
