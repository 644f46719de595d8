// TensorReader: reads tensors of a model's files into memory, in the form that weights have there. Files stay open, so
// that they can be read again after somebody has moved them. One call at a time.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "kernels/format/block_type.h"
#include "runtime/hparams.h"

namespace stoker {

class Gguf;
struct GgufTensor;

// Told of every piece that has been read, in bytes; returning false gives up. One call at a time, from any thread.
using ReadProgress = std::function<bool(i64 bytes)>;

// A piece of work: copied as it is, turned into floats (norms, router), or, for kv_b, split into the absorbed form: k_b
// transposed per head (DeepSeek-V2, arXiv 2405.04434, appendix C) and v_b.
struct TensorRead {
  enum class Kind { copy, to_f32, split_kv_b } kind = Kind::copy;
  const GgufTensor* tensor = nullptr;
  i64 first = 0, bytes = 0;    // part of the tensor's data: all of it for to_f32, whole heads for split_kv_b
  std::byte* to = nullptr;     // of split_kv_b: the first head's k_b
  std::byte* to_v = nullptr;   // and v_b
};

class TensorReader {
 public:
  // Both must outlive it. Throws Error when a file cannot be opened.
  TensorReader(const Gguf& gguf, const Hparams& hparams);
  ~TensorReader();
  TensorReader(const TensorReader&) = delete;
  TensorReader& operator=(const TensorReader&) = delete;

  // In parallel. Throws Error naming tensor and file, Interrupted when `progress`, if any, gives up.
  void run(std::span<const TensorRead> reads, const ReadProgress& progress) const;

  // Transposing breaks blocks up. f16 keeps more bits than any block format has; float stays float.
  static BlockType derived_k_type(BlockType kv_b) {
    return kv_b == BlockType::F32 || kv_b == BlockType::BF16 ? BlockType::F32 : BlockType::F16;
  }

 private:
  void run(const TensorRead& job) const;
  void read(const TensorRead& job, std::byte* to) const;
  std::vector<std::byte> read_all(const TensorRead& job) const;
  void split_kv_b(const TensorRead& job) const;
  void write_transposed(const std::vector<f32>& keys, BlockType type, std::byte* k_b, i64 head) const;

  const Gguf& gguf_;
  const Hparams& h_;
  std::vector<int> files_;
};

}  // namespace stoker
