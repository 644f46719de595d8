// A CUDA runtime of CPU memory: the functions that kernels/device/cuda_*.cc calls, so that these run without a card. It is as
// CUDA is described where that matters to them: work of a stream runs later, in order; errors are remembered for the thread
// until somebody asks, cudaErrorNotReady too; a lost card answers everything with its error, and other cards go on; an event
// is recorded in streams of its own card; a range of memory is pinned once, and a copy does not leave the range that it begins
// in. Linked in before the real one. Kernels cannot be launched.
//
// One thread at a time.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

#include "kernels/base/types.h"

namespace stoker::test::fake_cuda {

constexpr int kCards = 2;
constexpr i64 kCardBytes = 64 * kMiB;

// Everything as at the start. Nothing of before may be in use.
void reset();
// All work of all streams that is not behind an event which has not been recorded.
void run_all();
// From now on every call that concerns the card answers with `error`.
void lose(int card, cudaError_t error);
// As a launch that does not get to the card: the error waits for cudaGetLastError().
void fail_launch(cudaError_t error);
void refuse_pinning(bool refuse);

i64 pinned_ranges();
i64 peer_requests();  // calls of cudaDeviceEnablePeerAccess
i64 direct_copies();  // between cards that have access
// Streams and events that were made and not destroyed, and blocks of memory.
i64 alive();

}  // namespace stoker::test::fake_cuda
