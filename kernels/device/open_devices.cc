#include "kernels/device/open_devices.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/device/cuda_device.h"

namespace stoker {

namespace {

// "cuda:0", and "cuda:0#1" for a second logical device on the same card.
std::string cuda_id(const std::vector<int>& cards, size_t index) {
  auto at = cards.begin() + static_cast<std::ptrdiff_t>(index);
  auto before = std::count(cards.begin(), at, *at);
  return before == 0 ? fmt::format("cuda:{}", *at) : fmt::format("cuda:{}#{}", *at, before);
}

}  // namespace

std::vector<std::unique_ptr<Device>> open_devices(const DeviceChoice& choice) {
  CHECK(choice.kind != DeviceChoice::Kind::automatic);
  std::vector<std::unique_ptr<Device>> devices;
  for (size_t i = 0; i < choice.cards.size(); i++)
    devices.push_back(open_cuda_device(choice.cards[i], cuda_id(choice.cards, i)));
  for (size_t i = 0; i < choice.host.size(); i++)
    devices.push_back(open_host_device(choice.host[i], fmt::format("host:{}", i)));
  return devices;
}

}  // namespace stoker
