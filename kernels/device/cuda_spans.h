// CudaSpans: when a stream of a card ran what, for a timeline. Events with times are recorded around the work, and are asked
// when they have long passed. Owner: the stream's.
#pragma once

#include <cuda_runtime_api.h>

#include <array>

#include "kernels/base/timeline.h"

namespace stoker {

// A card's clock beside ours: `zero` has passed at zero_ns of the steady clock. Times since then are floats of
// milliseconds, so after a hundred seconds a span may lie 8 us off; its length is exact to half a microsecond.
struct CudaClock {
  Timeline* timeline = nullptr;  // or none: nothing is recorded
  cudaEvent_t zero = nullptr;
  i64 zero_ns = 0;
  i32 lane = 0, up = 0, down = 0;
};

// How cudaEventQuery() and cudaStreamQuery() answer. CUDA remembers its errors, cudaErrorNotReady among them, for the thread,
// and the next look for failed launches, perhaps of another card, would find them. So they are taken back, unless a failed
// launch waits to be found.
cudaError_t ask_event(cudaEvent_t event);
cudaError_t ask_stream(cudaStream_t stream);

class CudaSpans {
 public:
  // Both must outlive it.
  CudaSpans(const CudaClock& clock, cudaStream_t stream);
  ~CudaSpans();
  CudaSpans(const CudaSpans&) = delete;
  CudaSpans& operator=(const CudaSpans&) = delete;

  // What is posted between the two. One that has not ended yet ends where another begins.
  void begin(const char* what, i32 lane);
  void end();
  // Adds those that have passed; `all`: the stream has nothing under way.
  void collect(bool all);

 private:
  static constexpr size_t kMost = 256;  // under way; further ones are not recorded

  struct Pair {
    cudaEvent_t begin = nullptr, end = nullptr;
    const char* what = "";
    i32 lane = 0;
  };

  const CudaClock& clock_;
  cudaStream_t stream_;
  std::array<Pair, kMost> pairs_;  // a ring; events only where there is a timeline
  size_t first_ = 0, count_ = 0;
  bool open_ = false;  // the pair behind those has begun
};

}  // namespace stoker
