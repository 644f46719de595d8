// TokenBytes: how many bytes of weights and cache one decoded token must read, whatever tier they are in. With the
// memory's speed this is the roof of decode (a token per bytes / bandwidth), and what is reached of it is the measure of
// the kernels. Activations, a thousandth of it, are left out.
#pragma once

#include "kernels/base/types.h"

namespace stoker {

class ExpertTable;
class KvCache;
class Weights;

struct TokenBytes {
  i64 attention = 0;         // projections and per-head matrices
  i64 experts = 0;           // top-k routed experts of every MoE layer
  i64 rest = 0;              // dense and shared FFN, routers, output head
  i64 cache_per_position = 0;  // KV cache, per position attended to

  i64 weights() const { return attention + experts + rest; }
};

TokenBytes token_bytes(const Weights& weights, const ExpertTable& experts, const KvCache& cache);

}  // namespace stoker
