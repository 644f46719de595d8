// What the kernels need on a card before they run there.
#pragma once

#include "kernels/cuda/launch.h"

namespace stoker {
class Stream;
}

namespace stoker::cuda {

// A stream and its card, which is the calling thread's current one from here on.
struct Target {
  const Card& card;
  CUstream_st* stream;
};

// The first call for a card puts the code books there, 20 KiB for good. Throws Error when that fails. Any thread.
Target target_of(Stream& stream);

}  // namespace stoker::cuda
