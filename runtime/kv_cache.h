// KvCache: what attention remembers of one sequence: per layer and position the latent (after its norm) and the
// shared rotated key, in one of the types of ops.h. Allocated once; truncating forgets the end.
// Owner: the engine thread.
#pragma once

#include <string_view>

#include "kernels/base/buffer.h"
#include "kernels/base/ids.h"
#include "kernels/base/types.h"
#include "kernels/ops.h"

namespace stoker {

struct Hparams;

std::string_view name(CacheType type);  // "f16", as options have it

class KvCache {
 public:
  KvCache(const Hparams& hparams, i64 context, CacheType type);

  static i64 bytes_needed(const Hparams& hparams, i64 context, CacheType type);

  i64 context() const { return context_; }  // most positions it can hold
  i64 length() const { return length_; }    // positions held
  void set_length(i64 length) { length_ = length; }
  void truncate(i64 length) {
    if (length < length_) length_ = length;
    if (length < shared_) shared_ = length;
  }
  // Of so many of them, devices have the rows of their layers too. Those that were truncated and came back in another
  // way than by a pass, they have not.
  i64 shared() const { return shared_; }
  void share() { shared_ = length_; }

  CacheType type() const { return type_; }
  // Row `position` of one layer's [context, latent + rope].
  std::byte* row(LayerId layer, i64 position) const {
    return memory_.data() + cache_bytes(type_, (layer.value * context_ + position) * row_);
  }

 private:
  i64 context_, row_, length_ = 0, shared_ = 0;
  CacheType type_;
  Buffer memory_;
};

}  // namespace stoker
