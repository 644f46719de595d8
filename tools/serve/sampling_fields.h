// The fields of a request that say how to sample; those that are absent are as the command line has them.
#pragma once

#include "runtime/sampler.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tools/options.h"
#include "tools/serve/request_body.h"

namespace stoker {

SamplerOptions sampling_of(const RequestBody& body, const Options& options, const Tokenizer& tokenizer);

}  // namespace stoker
