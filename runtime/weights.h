// Weights: everything outside the routed experts. Read once into huge-page memory that is never evicted; only the
// embedding table stays mapped, for a token touches one row of it. Immutable after loading; any thread may read.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/ops.h"
#include "runtime/hparams.h"

namespace stoker {

class Gguf;
struct GgufTensor;

struct LayerWeights {
  const f32* attention_norm = nullptr;  // [hidden]
  Matrix q_a;                           // [q_lora, hidden]; no rows when the model has no q_lora
  const f32* q_a_norm = nullptr;        // [q_lora]
  Matrix q;                             // [heads * (nope + rope), q_lora or hidden]
  Matrix kv_a;                          // [latent + rope, hidden]
  const f32* kv_a_norm = nullptr;       // [latent]
  Matrix k_b;                           // head 0: [latent, nope]
  i64 k_b_head_bytes = 0;               // from one head to the next
  Matrix v_b;                           // head 0: [v, latent]
  i64 v_b_head_bytes = 0;
  Matrix attention_output;              // [hidden, heads * v]

  const f32* ffn_norm = nullptr;        // [hidden]
  Matrix gate, up, down;                // the dense FFN, or the shared experts as one
  Matrix router;                        // [experts, hidden] F32; no rows in a dense layer
  const f32* router_bias = nullptr;     // [experts] or nullptr

  bool is_moe() const { return router.rows > 0; }
};

// A read-only mapping of a part of a file.
class FileMapping {
 public:
  FileMapping() = default;
  FileMapping(const std::string& path, i64 offset, i64 bytes);  // throws Error
  ~FileMapping();
  FileMapping(FileMapping&& other) noexcept;
  FileMapping& operator=(FileMapping&& other) noexcept;
  const std::byte* data() const { return data_; }

 private:
  void* base_ = nullptr;
  i64 mapped_ = 0;
  const std::byte* data_ = nullptr;
};

class Weights {
 public:
  // progress(done, total) in bytes; returning false stops with Interrupted. Throws Error naming tensor and file.
  Weights(const Gguf& gguf, const Hparams& hparams, const std::function<bool(i64, i64)>& progress);

  static i64 bytes_needed(const Gguf& gguf, const Hparams& hparams);
  // What there will be, with types and sizes and no data.
  struct Shapes {
    std::vector<LayerWeights> layers;
    Matrix output;  // [vocab, hidden]
  };
  static Shapes shapes(const Gguf& gguf, const Hparams& hparams);

  const std::vector<LayerWeights>& layers() const { return layers_; }
  const Matrix& embedding() const { return embedding_; }  // [vocab, hidden], mapped
  const f32* output_norm() const { return output_norm_; }
  const Matrix& output() const { return output_; }  // [vocab, hidden]
  i64 bytes() const { return memory_.bytes(); }

 private:
  Buffer memory_;
  FileMapping embedding_file_;
  Matrix embedding_, output_;
  const f32* output_norm_ = nullptr;
  std::vector<LayerWeights> layers_;
};

}  // namespace stoker
