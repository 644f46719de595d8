#include "kernels/device/host_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>

#include "kernels/base/check.h"

namespace stoker {

namespace {

constexpr i64 kAlignment = 256;  // as cudaMalloc gives at least
constexpr int kNaNByte = 0xff;   // f32, f16 and bf16 of such bytes are NaN, so scales of quantised blocks are too

void* map(i64 bytes, int rights, int flags, int file) {
  void* p = mmap(nullptr, static_cast<size_t>(bytes), rights, flags | MAP_NORESERVE, file, 0);
  if (p == MAP_FAILED)
    fail("cannot reserve {:.1f} MiB for a host device: {}", static_cast<f64>(bytes) / kMiB, std::strerror(errno));
  return p;
}

}  // namespace

HostMemory::HostMemory(i64 bytes) : bytes_(round_up(bytes, 4 * kKiB)), file_(memfd_create("host device", MFD_CLOEXEC)) {
  if (file_ < 0 || ftruncate(file_, bytes_) != 0)
    fail("cannot make a host device of {:.1f} MiB: {}", static_cast<f64>(bytes_) / kMiB, std::strerror(errno));
  protected_ = reinterpret_cast<u64>(map(bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1));
  real_ = static_cast<std::byte*>(map(bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file_));
  free_.emplace(0, bytes_);
}

HostMemory::~HostMemory() {
  munmap(real_, static_cast<size_t>(bytes_));
  munmap(reinterpret_cast<void*>(protected_), static_cast<size_t>(bytes_));
  close(file_);
}

DevicePtr HostMemory::allocate(i64 bytes) {
  i64 wanted = round_up(std::max<i64>(bytes, 1), kAlignment);
  std::lock_guard lock(mutex_);
  auto block = std::find_if(free_.begin(), free_.end(), [&](const auto& b) { return b.second >= wanted; });
  if (block == free_.end()) return {};
  auto [offset, room] = *block;
  if (posix_fallocate(file_, offset, wanted) != 0) return {};
  free_.erase(block);
  if (room > wanted) free_.emplace(offset + wanted, room - wanted);
  used_.emplace(offset, wanted);
  std::memset(real_ + offset, kNaNByte, static_cast<size_t>(wanted));
  return {protected_ + static_cast<u64>(offset)};
}

void HostMemory::free(DevicePtr memory) {
  if (!memory) return;
  std::lock_guard lock(mutex_);
  auto block = used_.find(static_cast<i64>(memory.address - protected_));
  CHECK(block != used_.end());
  auto [offset, bytes] = *block;
  used_.erase(block);
  std::memset(real_ + offset, kNaNByte, static_cast<size_t>(bytes));
  auto after = free_.lower_bound(offset);
  if (after != free_.end() && after->first == offset + bytes) {
    bytes += after->second;
    after = free_.erase(after);
  }
  if (after != free_.begin() && std::prev(after)->first + std::prev(after)->second == offset)
    std::prev(after)->second += bytes;
  else
    free_.emplace(offset, bytes);
}

i64 HostMemory::free_bytes() const {
  std::lock_guard lock(mutex_);
  i64 bytes = 0;
  for (const auto& [offset, room] : free_) bytes += room;
  return bytes;
}

bool HostMemory::owns(DevicePtr memory) const {
  return memory.address >= protected_ && memory.address < protected_ + static_cast<u64>(bytes_);
}

}  // namespace stoker
