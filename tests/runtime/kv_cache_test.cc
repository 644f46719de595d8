#include "runtime/kv_cache.h"

#include <doctest/doctest.h>

#include "kernels/base/error.h"
#include "runtime/hparams.h"

namespace stoker {

static Hparams shape() {
  Hparams h;
  h.layers = 3;
  h.latent = 24;
  h.rope = 8;
  return h;
}

TEST_CASE("a cache has a row for every layer and position, and they do not overlap") {
  struct Case {
    CacheType type;
    i64 row;
  };
  for (auto [type, row] : {Case{CacheType::F16, 64}, Case{CacheType::F32, 128}, Case{CacheType::Q8_0, 34}}) {
    KvCache cache(shape(), 5, type);
    CHECK(cache.context() == 5);
    CHECK(cache.length() == 0);
    CHECK(KvCache::bytes_needed(shape(), 5, type) == 3 * 5 * row);
    CHECK(cache.row(LayerId(0), 1) - cache.row(LayerId(0), 0) == row);
    CHECK(cache.row(LayerId(1), 0) - cache.row(LayerId(0), 4) == row);
    CHECK(cache.row(LayerId(2), 4) - cache.row(LayerId(0), 0) == 14 * row);
  }
}

TEST_CASE("truncating only ever shortens") {
  KvCache cache(shape(), 5, CacheType::F16);
  cache.set_length(4);
  cache.truncate(5);
  CHECK(cache.length() == 4);
  cache.truncate(2);
  CHECK(cache.length() == 2);
  cache.truncate(0);
  CHECK(cache.length() == 0);
}

TEST_CASE("a cache that no machine could hold is an error that says what it is for") {
  Hparams h = shape();
  h.latent = 1 << 20;
  CHECK_THROWS_WITH_AS(KvCache(h, i64{1} << 38, CacheType::F16), doctest::Contains("KV cache"), Error);
}

}  // namespace stoker
