// CUDA cards as devices. The binary contains the CUDA runtime and links no driver: without one, or without a card, there
// are simply no cards.
#pragma once

#include <memory>
#include <string>

#include "kernels/device/device.h"

struct CUstream_st;

namespace stoker {

// What DeviceStream::native() of a card points to. (CUDA tells a stream's card only since 12.8.)
struct CudaStreamOfCard {
  CUstream_st* stream;  // a cudaStream_t
  int ordinal;
};

struct CudaPresence {
  int cards = 0;
  std::string why_none;  // when there are none
};

// Asks once; any thread.
const CudaPresence& cuda_presence();

// Card `ordinal` as the device with this id. A card can be opened more than once: two logical devices then share it.
// Throws Error when there is no such card, or it cannot be used.
std::unique_ptr<Device> open_cuda_device(int ordinal, const std::string& id);

}  // namespace stoker
