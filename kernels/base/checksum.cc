#include "kernels/base/checksum.h"

#include <xxhash.h>
#ifdef __x86_64__
#include <xxh_x86dispatch.h>  // the library then picks AVX2 or AVX-512 at run time
#endif

#include "kernels/base/check.h"

namespace stoker {

u64 checksum(std::span<const std::byte> data) { return XXH3_64bits(data.data(), data.size()); }

struct Checksummer::State {
  XXH3_state_t* xxh = XXH3_createState();
  State() { CHECK(xxh != nullptr && XXH3_64bits_reset(xxh) == XXH_OK); }
  ~State() { XXH3_freeState(xxh); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
};

Checksummer::Checksummer() : state_(std::make_unique<State>()) {}
Checksummer::~Checksummer() = default;

void Checksummer::add(std::span<const std::byte> part) {
  CHECK(XXH3_64bits_update(state_->xxh, part.data(), part.size()) == XXH_OK);
}

u64 Checksummer::take() {
  u64 sum = XXH3_64bits_digest(state_->xxh);
  CHECK(XXH3_64bits_reset(state_->xxh) == XXH_OK);
  return sum;
}

}  // namespace stoker
