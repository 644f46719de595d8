#include "runtime/kv_cache.h"

#include "runtime/hparams.h"

namespace stoker {

std::string_view name(CacheType type) {
  switch (type) {
    case CacheType::F16: return "f16";
    case CacheType::F32: return "f32";
    case CacheType::Q8_0: break;
  }
  return "q8_0";
}

i64 KvCache::bytes_needed(const Hparams& hparams, i64 context, CacheType type) {
  return cache_bytes(type, hparams.layers * context * hparams.cache_row());
}

KvCache::KvCache(const Hparams& hparams, i64 context, CacheType type)
    : context_(context),
      row_(hparams.cache_row()),
      type_(type),
      memory_(bytes_needed(hparams, context, type), "the KV cache (-c)") {}

}  // namespace stoker
