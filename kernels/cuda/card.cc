#include "kernels/cuda/card.h"

#include <cuda_runtime_api.h>

#include <array>
#include <mutex>

#include "kernels/base/error.h"
#include "kernels/device/cuda_device.h"
#include "kernels/device/stream.h"
#include "kernels/format/decode_books.h"

namespace stoker::cuda {

namespace {

constexpr int kMostCards = 64;

void require(cudaError_t error, int ordinal, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  fail("cuda:{}: {}: {}", ordinal, what, cudaGetErrorString(error));
}

// The current card.
Card prepare(int ordinal) {
  Card card;
  int shared = 0;
  require(cudaDeviceGetAttribute(&card.processors, cudaDevAttrMultiProcessorCount, ordinal), ordinal,
          "asking for its processors");
  require(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal), ordinal,
          "asking for its shared memory");
  card.shared_limit = shared;
  const DecodeBooks& books = decode_books();
  void* memory = nullptr;
  require(cudaMalloc(&memory, sizeof books), ordinal, "allocating the code books");
  // cudaMemcpy returns once it has read pageable memory, and streams that compute do not wait for its stream.
  require(cudaMemcpy(memory, books.data(), sizeof books, cudaMemcpyHostToDevice), ordinal, "copying the code books");
  require(cudaDeviceSynchronize(), ordinal, "copying the code books");
  card.books = static_cast<const u32*>(memory);
  return card;
}

}  // namespace

Target target_of(Stream& stream) {
  static std::array<Card, kMostCards> cards;
  static std::array<std::once_flag, kMostCards> prepared;
  const auto [native, ordinal] = *static_cast<const CudaStreamOfCard*>(stream.device().native());
  require(cudaSetDevice(ordinal), ordinal, "using the card");
  const size_t index = static_cast<size_t>(ordinal);
  std::call_once(prepared.at(index), [&] { cards[index] = prepare(ordinal); });
  return {cards[index], native};
}

}  // namespace stoker::cuda
