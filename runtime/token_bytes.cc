#include "runtime/token_bytes.h"

#include "runtime/kv_cache.h"
#include "runtime/weights.h"
#include "scheduler/model_file/expert_table.h"

namespace stoker {

namespace {

i64 bytes_of(const Matrix& m) { return m.rows * row_bytes(m.type, m.cols); }

i64 attention_bytes(const LayerWeights& w) {
  // Every head has its own k_b and v_b; the stride from head to head may span both.
  i64 heads = w.attention_output.cols / w.v_b.rows;
  return bytes_of(w.q_a) + bytes_of(w.q) + bytes_of(w.kv_a) + bytes_of(w.attention_output) +
         heads * (bytes_of(w.k_b) + bytes_of(w.v_b));
}

i64 ffn_bytes(const LayerWeights& w) {
  return bytes_of(w.gate) + bytes_of(w.up) + bytes_of(w.down) + bytes_of(w.router);
}

}  // namespace

TokenBytes token_bytes(const Weights& weights, const ExpertTable& experts, const KvCache& cache) {
  TokenBytes bytes;
  for (const LayerWeights& layer : weights.layers()) {
    bytes.attention += attention_bytes(layer);
    bytes.rest += ffn_bytes(layer);
  }
  for (const HeadPart& part : weights.head()) bytes.rest += bytes_of(part.weights);
  for (const ExpertLayer& layer : experts.layers()) bytes.experts += experts.top_k() * experts.expert_bytes(layer.layer);
  bytes.cache_per_position = static_cast<i64>(weights.layers().size()) *
                             (cache.row(LayerId(0), 1) - cache.row(LayerId(0), 0));
  return bytes;
}

}  // namespace stoker
