// A CUDA runtime of CPU memory: the functions that kernels/device/cuda_*.cc calls, so that these run without a card. It is as
// CUDA is described where that matters to them: work of a stream runs later, in order; errors are remembered for the thread
// until somebody asks, cudaErrorNotReady too; a lost card answers everything with its error, and other cards go on; an event
// is recorded in streams of its own card; a range of memory is pinned once, and a copy does not leave the range that it begins
// in; cudaMemcpy from pageable memory returns before the bytes are there. Linked in before the real one.
//
// Any thread; work runs in the one that waits for it.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

#include "kernels/base/types.h"

namespace stoker::test::fake_cuda {

constexpr int kCards = 2;
constexpr i64 kCardBytes = 64 * kMiB;
constexpr int kProcessors = 3;
constexpr i64 kSharedBytes = 99 * kKiB;

// Everything as at the start. Nothing of before may be in use.
void reset();
// All work of all streams that is not behind an event which has not been recorded.
void run_all();
// As <<<>>> does it: posts a kernel, which must be of the card that is current.
void launch(cudaStream_t stream, std::function<void()> kernel);
// Whether asking for an event that has not passed lets some work run, as time does. Asking for a stream always does.
void run_when_asked(bool run);
// From now on every call that concerns the card answers with `error`.
void lose(int card, cudaError_t error);
// As a launch that does not get to the card: the error waits for cudaGetLastError().
void fail_launch(cudaError_t error);
void refuse_launches(cudaError_t error);  // all from now on; none with cudaSuccess
void refuse_pinning(bool refuse);

i64 launches();
i64 copies();  // cudaMemcpyAsync
i64 waits();   // cudaEventSynchronize and cudaStreamSynchronize
i64 pinned_ranges();
i64 peer_requests();  // calls of cudaDeviceEnablePeerAccess
i64 direct_copies();  // between cards that have access
// Streams and events that were made and not destroyed, and blocks of memory.
i64 alive();

}  // namespace stoker::test::fake_cuda
