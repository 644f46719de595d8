#include "kernels/device/cuda_spans.h"

#include <cmath>

namespace stoker {

namespace {

i64 ns_between(cudaEvent_t from, cudaEvent_t to) {
  float ms = 0;
  cudaEventElapsedTime(&ms, from, to);
  return std::llround(static_cast<f64>(ms) * 1e6);
}

}  // namespace

template <class T>
static cudaError_t ask(cudaError_t (*query)(T), T what) {
  const bool clean = cudaPeekAtLastError() == cudaSuccess;
  cudaError_t passed = query(what);
  if (passed != cudaSuccess && clean) cudaGetLastError();
  return passed;
}

cudaError_t ask_event(cudaEvent_t event) { return ask(cudaEventQuery, event); }
cudaError_t ask_stream(cudaStream_t stream) { return ask(cudaStreamQuery, stream); }

// What goes wrong with these events goes wrong with the stream as well, which tells. So nothing is asked here, and the
// error that CUDA remembers is left to it.
CudaSpans::CudaSpans(const CudaClock& clock, cudaStream_t stream) : clock_(clock), stream_(stream) {
  if (clock_.timeline == nullptr) return;
  for (Pair& pair : pairs_) {
    cudaEventCreate(&pair.begin);
    cudaEventCreate(&pair.end);
  }
}

CudaSpans::~CudaSpans() {
  collect(true);
  for (Pair& pair : pairs_) {
    if (pair.begin != nullptr) cudaEventDestroy(pair.begin);
    if (pair.end != nullptr) cudaEventDestroy(pair.end);
  }
}

void CudaSpans::begin(const char* what, i32 lane) {
  if (clock_.timeline == nullptr) return;
  end();
  collect(false);
  open_ = count_ < kMost;
  if (!open_) return;
  Pair& pair = pairs_[(first_ + count_) % kMost];
  pair.what = what;
  pair.lane = lane;
  cudaEventRecord(pair.begin, stream_);
}

void CudaSpans::end() {
  if (!open_) return;
  cudaEventRecord(pairs_[(first_ + count_) % kMost].end, stream_);
  count_++;
  open_ = false;
}

void CudaSpans::collect(bool all) {
  while (count_ > 0) {
    const Pair& pair = pairs_[first_];
    cudaError_t passed = ask_event(pair.end);
    if (passed != cudaSuccess && !all) return;
    if (passed == cudaSuccess) {
      i64 begin_ns = clock_.zero_ns + ns_between(clock_.zero, pair.begin);
      clock_.timeline->add({begin_ns, begin_ns + ns_between(pair.begin, pair.end), pair.what, pair.lane});
    }
    first_ = (first_ + 1) % kMost;
    count_--;
  }
}

}  // namespace stoker
