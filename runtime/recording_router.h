// RecordingRouter: writes down what another router chooses (scheduler/trace). A pass's tokens reach the file when its last
// layer has been routed; those of a pass that fails do not. When the file cannot be written (a full disk), a warning says
// so, and the run goes on without. Owner: the engine thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/router.h"
#include "scheduler/trace/trace_writer.h"

namespace stoker {

class Lookahead;

// How the model's routing looks in a trace.
TraceHeader trace_header(const Hparams& hparams);

class RecordingRouter final : public Router {
 public:
  // `router` must outlive this. With `details` the file has where experts were, how long layers waited, and what was guessed.
  // Throws Error when the file cannot be created.
  RecordingRouter(Router& router, const Hparams& hparams, const std::string& path, i64 max_tokens, bool details);
  // Whose guesses these are; it must outlive this. Without, none are recorded.
  void watch(Lookahead* lookahead) { lookahead_ = lookahead; }

  void begin_batch(std::span<const BatchRow> rows) override;
  void route(const RoutedRows& rows, i32* ids, f32* gate_weights) override;
  bool wants_served() const override { return header_.has_stalls && writer_ != nullptr; }
  void served(LayerId layer, std::span<const ExpertTier> tiers, i64 stall_ns) override;

 private:
  void note_guesses(i64 index, i64 token, TraceRecord& record);
  void write(i64 tokens);

  Router& router_;
  Lookahead* lookahead_ = nullptr;
  TraceHeader header_;
  std::unique_ptr<TraceWriter> writer_;  // none after a failure
  std::vector<TraceRecord> records_;     // [max_tokens], of this batch
};

}  // namespace stoker
