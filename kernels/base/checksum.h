// Checksums of data on disk: XXH3, 64 bits. Not against forgery; it finds damage at the speed of memory.
#pragma once

#include <memory>
#include <span>

#include "kernels/base/types.h"

namespace stoker {

u64 checksum(std::span<const std::byte> data);

// The same over data that comes in parts. Owner: one thread.
class Checksummer {
 public:
  Checksummer();
  ~Checksummer();
  void add(std::span<const std::byte> part);
  // Of all parts since the last call, which begins anew.
  u64 take();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace stoker
