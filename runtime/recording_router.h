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

// How the model's routing looks in a trace.
TraceHeader trace_header(const Hparams& hparams);

class RecordingRouter final : public Router {
 public:
  // `router` must outlive this. Throws Error when the file cannot be created.
  RecordingRouter(Router& router, const Hparams& hparams, const std::string& path, i64 max_tokens);

  void begin_batch(std::span<const BatchRow> rows) override;
  void route(Stream& stream, LayerId layer, const LayerWeights& weights, const f32* x, i64 tokens, i32* ids,
             f32* gate_weights) override;

 private:
  void write(i64 tokens);

  Router& router_;
  TraceHeader header_;
  std::unique_ptr<TraceWriter> writer_;  // none after a failure
  std::vector<TraceRecord> records_;     // [max_tokens], of this batch
};

}  // namespace stoker
