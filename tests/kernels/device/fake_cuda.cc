#include "tests/kernels/device/fake_cuda.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <utility>
#include <vector>

using namespace stoker;

struct CUevent_st {
  int card;
  bool timed;
  i64 recorded = 0, passed = 0;  // times
  f32 ms = 0;
};

struct CUstream_st {
  int card = 0;
  // One after the other; false: not yet.
  std::deque<std::function<bool()>> work = {};
};

namespace {

struct Card {
  cudaError_t lost = cudaSuccess;
  i64 free_bytes = test::fake_cuda::kCardBytes;
  std::set<int> peers;
};

struct State {
  std::array<Card, test::fake_cuda::kCards> cards;
  std::set<cudaStream_t> streams;
  std::set<cudaEvent_t> events;
  std::map<std::byte*, std::pair<int, i64>> memory;  // card, bytes
  std::map<std::byte*, i64> pinned;
  std::array<CUstream_st, test::fake_cuda::kCards> legacy;  // the default streams
  cudaError_t refuse_launches = cudaSuccess;
  bool refuse_pinning = false, run_when_asked = false, backwards = false;
  i64 launches = 0, copies = 0, waits = 0, peer_requests = 0, direct_copies = 0;
  f32 clock_ms = 0;
};

State& state() {
  static State one;
  return one;
}

std::recursive_mutex& mutex() {
  static std::recursive_mutex one;
  return one;
}
using Lock = std::lock_guard<std::recursive_mutex>;

thread_local int current = 0;
thread_local cudaError_t last = cudaSuccess;

cudaError_t answer(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

Card& card(int ordinal) { return state().cards[static_cast<size_t>(ordinal)]; }

// The call's own answer, unless its card is lost.
cudaError_t answer_of(int ordinal, cudaError_t error = cudaSuccess) {
  return answer(card(ordinal).lost != cudaSuccess ? card(ordinal).lost : error);
}

bool is_alive(cudaEvent_t event) { return state().events.contains(event); }

// As far as it goes. Whether anything ran.
bool run(cudaStream_t stream, i64 most = INT64_MAX) {
  i64 done = 0;
  for (; done < most && !stream->work.empty() && card(stream->card).lost == cudaSuccess; done++) {
    if (!stream->work.front()()) break;
    stream->work.pop_front();
  }
  return done > 0;
}

std::vector<cudaStream_t> all_streams() {
  std::vector<cudaStream_t> streams(state().streams.begin(), state().streams.end());
  for (CUstream_st& stream : state().legacy) streams.push_back(&stream);
  // Now one goes ahead, now the other.
  if (std::exchange(state().backwards, !state().backwards)) std::reverse(streams.begin(), streams.end());
  return streams;
}

// Whether the range leaves the pinned one that it begins in.
bool leaves_pinned(const void* begin, size_t bytes) {
  auto* at = const_cast<std::byte*>(static_cast<const std::byte*>(begin));
  auto next = state().pinned.upper_bound(at);
  if (next == state().pinned.begin()) return false;
  const auto& [first, length] = *std::prev(next);
  return at < first + length && at + bytes > first + length;
}

void post_copy(cudaStream_t stream, void* to, const void* from, size_t bytes) {
  stream->work.push_back([=] {
    std::memcpy(to, from, bytes);
    return true;
  });
}

}  // namespace

namespace stoker::test::fake_cuda {

void reset() {
  state() = {};
  for (int i = 0; i < kCards; i++) state().legacy[static_cast<size_t>(i)].card = i;
  current = 0;
  last = cudaSuccess;
}

void run_all() {
  Lock lock(mutex());
  for (bool moved = true; moved;) {
    moved = false;
    for (cudaStream_t stream : all_streams()) moved |= run(stream);
  }
}

void launch(cudaStream_t stream, std::function<void()> kernel) {
  Lock lock(mutex());
  const cudaError_t error = stream->card != current ? cudaErrorInvalidResourceHandle : state().refuse_launches;
  if (answer_of(stream->card, error) != cudaSuccess) return;
  state().launches++;
  stream->work.push_back([kernel = std::move(kernel)] {
    kernel();
    return true;
  });
}

void run_when_asked(bool run) { state().run_when_asked = run; }

void lose(int ordinal, cudaError_t error) { card(ordinal).lost = error; }
void fail_launch(cudaError_t error) { last = error; }
void refuse_launches(cudaError_t error) { state().refuse_launches = error; }
void refuse_pinning(bool refuse) { state().refuse_pinning = refuse; }
i64 launches() { return state().launches; }
i64 copies() { return state().copies; }
i64 waits() { return state().waits; }
i64 pinned_ranges() { return static_cast<i64>(state().pinned.size()); }
i64 peer_requests() { return state().peer_requests; }
i64 direct_copies() { return state().direct_copies; }
i64 alive() { return static_cast<i64>(state().streams.size() + state().events.size() + state().memory.size()); }

}  // namespace stoker::test::fake_cuda

using test::fake_cuda::kCards;

extern "C" {

cudaError_t cudaGetLastError() { return std::exchange(last, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last; }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorIllegalAddress ? "an illegal memory access was encountered" : "another error";
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = kCards;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int ordinal) {
  Lock lock(mutex());
  if (ordinal < 0 || ordinal >= kCards) return answer(cudaErrorInvalidDevice);
  current = ordinal;
  return answer_of(ordinal);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int ordinal) {
  *properties = {};
  std::strcpy(properties->name, "fake");
  properties->totalGlobalMem = static_cast<size_t>(test::fake_cuda::kCardBytes);
  properties->major = 8;
  properties->minor = 6;
  return answer_of(ordinal);
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  Lock lock(mutex());
  *free_bytes = static_cast<size_t>(card(current).free_bytes);
  *total_bytes = static_cast<size_t>(test::fake_cuda::kCardBytes);
  return answer_of(current);
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  Lock lock(mutex());
  const i64 size = static_cast<i64>(bytes);
  if (card(current).lost != cudaSuccess) return answer_of(current);
  if (size > card(current).free_bytes) return answer(cudaErrorMemoryAllocation);
  auto* block = new (std::align_val_t(256)) std::byte[bytes];
  std::fill_n(block, bytes, std::byte{0xff});  // no numbers
  card(current).free_bytes -= size;
  state().memory[block] = {current, size};
  *memory = block;
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  Lock lock(mutex());
  if (memory == nullptr) return answer_of(current);
  auto found = state().memory.find(static_cast<std::byte*>(memory));
  if (found == state().memory.end()) return answer(cudaErrorInvalidValue);
  const auto [owner, bytes] = found->second;
  card(owner).free_bytes += bytes;
  state().memory.erase(found);
  operator delete[](memory, std::align_val_t(256));
  return answer_of(owner);
}

cudaError_t cudaHostRegister(void* begin, size_t bytes, unsigned) {
  Lock lock(mutex());
  auto* at = static_cast<std::byte*>(begin);
  if (state().refuse_pinning) return answer(cudaErrorMemoryAllocation);
  if (!state().pinned.emplace(at, static_cast<i64>(bytes)).second) return answer(cudaErrorHostMemoryAlreadyRegistered);
  return answer_of(current);
}
cudaError_t cudaHostUnregister(void* begin) {
  Lock lock(mutex());
  return answer(state().pinned.erase(static_cast<std::byte*>(begin)) == 1 ? cudaSuccess : cudaErrorHostMemoryNotRegistered);
}
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  Lock lock(mutex());
  *stream = new CUstream_st{.card = current, .work = {}};
  state().streams.insert(*stream);
  return answer_of(current);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Lock lock(mutex());
  const int owner = stream->card;
  state().streams.erase(stream);
  delete stream;
  return answer_of(owner);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  Lock lock(mutex());
  state().waits++;
  test::fake_cuda::run_all();
  return answer_of(stream->card);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  Lock lock(mutex());
  const bool idle = stream->work.empty();
  if (!idle)
    for (cudaStream_t any : all_streams()) run(any, 1);
  return answer_of(stream->card, idle ? cudaSuccess : cudaErrorNotReady);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  Lock lock(mutex());
  stream->work.push_back([event, wanted = event->recorded] { return !is_alive(event) || event->passed >= wanted; });
  return answer_of(stream->card);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  Lock lock(mutex());
  *event = new CUevent_st{.card = current, .timed = (flags & cudaEventDisableTiming) == 0};
  state().events.insert(*event);
  return answer_of(current);
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Lock lock(mutex());
  const int owner = event->card;
  state().events.erase(event);
  delete event;
  return answer_of(owner);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  Lock lock(mutex());
  if (stream == nullptr) {  // the default stream, which has never anything to do
    if (event->card != current) return answer(cudaErrorInvalidResourceHandle);
    event->passed = ++event->recorded;
    event->ms = state().clock_ms++;
    return answer_of(current);
  }
  if (event->card != stream->card) return answer(cudaErrorInvalidResourceHandle);
  if (card(event->card).lost != cudaSuccess) return answer_of(event->card);
  stream->work.push_back([event, time = ++event->recorded] {
    if (!is_alive(event)) return true;
    event->passed = time;
    event->ms = state().clock_ms++;
    return true;
  });
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  Lock lock(mutex());
  const bool passed = event->passed == event->recorded;
  if (!passed && state().run_when_asked)
    for (cudaStream_t stream : all_streams()) run(stream, 1);
  return answer_of(event->card, passed ? cudaSuccess : cudaErrorNotReady);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  Lock lock(mutex());
  state().waits++;
  test::fake_cuda::run_all();
  return answer_of(event->card, event->passed == event->recorded ? cudaSuccess : cudaErrorUnknown);
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
  Lock lock(mutex());
  if (!from->timed || !to->timed) return answer(cudaErrorInvalidResourceHandle);
  *ms = to->ms - from->ms;
  return answer_of(to->card);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  Lock lock(mutex());
  if (card(stream->card).lost != cudaSuccess) return answer_of(stream->card);
  if (kind == cudaMemcpyHostToDevice && leaves_pinned(from, bytes)) return answer(cudaErrorInvalidValue);
  if (kind == cudaMemcpyDeviceToHost && leaves_pinned(to, bytes)) return answer(cudaErrorInvalidValue);
  state().copies++;
  post_copy(stream, to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  Lock lock(mutex());
  auto staged = std::make_shared<std::vector<std::byte>>(static_cast<const std::byte*>(from),
                                                         static_cast<const std::byte*>(from) + bytes);
  state().legacy[static_cast<size_t>(current)].work.push_back([=] {
    std::memcpy(to, staged->data(), bytes);
    return true;
  });
  return answer_of(current);
}
cudaError_t cudaDeviceSynchronize() {
  test::fake_cuda::run_all();
  return answer_of(current);
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int ordinal) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? test::fake_cuda::kProcessors
                                                       : static_cast<int>(test::fake_cuda::kSharedBytes);
  return answer_of(ordinal);
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned) {
  Lock lock(mutex());
  state().peer_requests++;
  if (peer == current) return answer(cudaErrorInvalidDevice);
  return answer(card(current).peers.insert(peer).second ? cudaSuccess : cudaErrorPeerAccessAlreadyEnabled);
}
cudaError_t cudaMemcpyPeerAsync(void* to, int to_card, const void* from, int from_card, size_t bytes, cudaStream_t stream) {
  Lock lock(mutex());
  state().direct_copies += card(to_card).peers.contains(from_card);
  post_copy(stream, to, from, bytes);
  return answer_of(stream->card);
}

}  // extern "C"
