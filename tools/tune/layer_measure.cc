#include "tools/tune/layer_measure.h"

#include <algorithm>
#include <vector>

#include "kernels/base/clock.h"
#include "kernels/base/own_thread.h"
#include "kernels/base/work_folder.h"
#include "runtime/engine.h"
#include "runtime/synth/synth_model.h"
#include "runtime/token_bytes.h"
#include "tools/teacher.h"

namespace stoker {

namespace {

constexpr i64 kTokens = 256, kWarmUp = 32;
constexpr i64 kRamBytes = 64 * kMiB;  // more than all its experts

f64 overhead_us(const std::string& model, int threads, f64 gb_per_second) {
  EngineOptions options;
  options.model_path = model;
  options.ram_bytes = kRamBytes;
  options.context = kTokens;
  options.chunk = 1;
  options.threads = threads;
  options.predictor = PredictorKind::none;
  Engine engine(options);
  std::vector<i32> tokens;
  for (i64 i = 0; i < kTokens; i++) tokens.push_back(static_cast<i32>(i % engine.hparams().vocab));
  std::vector<f64> us;
  i64 before = steady_clock().now_ns();
  Teacher(engine).feed_generated(tokens, [&](i64 first, std::span<const f32>) {
    i64 now = steady_clock().now_ns();
    if (first >= kWarmUp) us.push_back(static_cast<f64>(now - before) * 1e-3);
    before = now;
  });
  std::nth_element(us.begin(), us.begin() + static_cast<i64>(us.size() / 2), us.end());
  f64 weights_us = static_cast<f64>(engine.token_bytes().weights()) / gb_per_second * 1e-3;
  return std::max(0., us[us.size() / 2] - weights_us) / static_cast<f64>(engine.hparams().layers);
}

}  // namespace

f64 measure_layer_overhead_us(int threads, f64 gb_per_second) {
  WorkFolder folder;
  std::string path = folder.file("layers.gguf");
  write_synth_model({.shape = "tiny", .output = path});
  f64 us = 0;
  on_own_thread([&] { us = overhead_us(path, threads, gb_per_second); });  // the engine pins the thread that it is made in
  return us;
}

}  // namespace stoker
