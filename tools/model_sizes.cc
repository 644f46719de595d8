#include "tools/model_sizes.h"

#include <fmt/format.h>

#include <charconv>
#include <string_view>

#include "runtime/hparams.h"
#include "scheduler/model_file/gguf.h"
#include "scheduler/model_file/pack.h"

namespace stoker {

namespace {

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// N of "blk.N.rest", -1 for other names.
i64 layer_of(std::string_view name) {
  if (!name.starts_with("blk.")) return -1;
  i64 layer = -1;
  std::from_chars(name.data() + 4, name.data() + name.size(), layer);
  return layer;
}

// Of packed experts the tensor table knows the padded bytes only.
void add_packed(const Gguf& gguf, const Hparams& h, ModelSizes& s) {
  ExpertTable experts = ExpertTable::from_gguf(gguf, h.expert_shape());
  for (const ExpertLayer& layer : experts.layers()) {
    for (const Extent& matrix : layer.base) {
      s.parameters += h.experts * h.hidden * h.expert_ffn;
      s.routed_bytes += h.experts * matrix.bytes;
      s.routed_types[std::string(info(matrix.type).name)] += h.experts * matrix.bytes;
    }
  }
}

}  // namespace

ModelSizes model_sizes(const Gguf& gguf, const Hparams& hparams) {
  ModelSizes s;
  if (is_pack(gguf)) add_packed(gguf, hparams, s);
  for (const GgufTensor& t : gguf.tensors()) {
    if (is_packed_tensor(t.name)) continue;
    if (layer_of(t.name) >= hparams.layers) {
      s.mtp_bytes += t.bytes;
      continue;
    }
    s.parameters += t.weights();
    std::string type(info(t.type).name);
    if (contains(t.name, "_exps.")) {
      s.routed_bytes += t.bytes;
      s.routed_types[type] += t.bytes;
    } else if (contains(t.name, "_shexp.")) {
      s.shared_bytes += t.bytes;
      s.shared_types[type] += t.bytes;
    } else {
      bool attention = contains(t.name, ".attn_");
      i64& bytes = attention                       ? s.attention_bytes
                   : t.name == "token_embd.weight" ? s.embedding_bytes
                   : t.name.starts_with("output")  ? s.head_bytes
                                                   : s.dense_bytes;
      bytes += t.bytes;
      s.resident_types[type] += t.bytes;
    }
  }
  return s;
}

std::string human_parameters(i64 count) {
  f64 n = static_cast<f64>(count);
  return n >= 1e9 ? fmt::format("{:.2f} B", n * 1e-9) : fmt::format("{:.2f} M", n * 1e-6);
}

}  // namespace stoker
