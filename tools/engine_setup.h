// From the command line to a loaded engine, with a progress bar.
#pragma once

#include <functional>
#include <memory>
#include <string_view>

#include "runtime/engine.h"
#include "tools/options.h"

namespace stoker {

EngineOptions engine_options(const Options& options);

// --predictor, and --prefetch with what belongs to it, checked before.
PredictorKind predictor_kind(const Options& options);
GovernorOptions governor_options(const Options& options);

// Throws Error, or Interrupted after Ctrl-C. Says on stderr what was loaded when `options.verbose`.
// `told`, when there is one, hears what the progress bar shows.
std::unique_ptr<Engine> load_engine(const EngineOptions& engine_options,
                                    const std::function<void(std::string_view stage, i64 done, i64 total)>& told = {});

}  // namespace stoker
