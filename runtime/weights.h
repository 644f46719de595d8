// Weights: everything outside the routed experts. What has no device for its home (scheduler/home_devices.h) is read
// once into huge-page memory that is never evicted; only the embedding table stays mapped, for a token touches one row
// of it. What a device is home of goes there through a buffer, and is not in RAM, until the device is lost and restore()
// reads it.
// Owner: the engine thread, which alone calls restore(); otherwise immutable after loading.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/error.h"
#include "kernels/base/ids.h"
#include "kernels/ops.h"
#include "runtime/hparams.h"
#include "runtime/tensor_reader.h"
#include "scheduler/home_devices.h"

namespace stoker {

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
  // Whether the matrices are here, and not on their home alone.
  bool has_attention() const { return kv_a.data != nullptr; }
  bool has_ffn() const { return gate.rows == 0 || gate.data != nullptr; }
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

// Rows of the output head.
struct HeadPart {
  Matrix weights;     // [rows, hidden]
  i64 first_row = 0;  // of the vocabulary
  i32 device = -1;    // its home, or none
};

// Where they are. Without data: a matrix that only its home has.
struct WeightPlaces {
  std::vector<LayerWeights> layers;
  std::vector<HeadPart> head;  // all of the vocabulary, one after the other
  const f32* output_norm = nullptr;
};

class Weights {
 public:
  // Reads into RAM what has no device for its home. Gguf and hparams must outlive it. Throws Error naming tensor and
  // file, Interrupted when `progress` gives up.
  Weights(const Gguf& gguf, const Hparams& hparams, const Homes& homes, const ReadProgress& progress);

  // Of RAM, with these homes.
  static i64 bytes_needed(const Gguf& gguf, const Hparams& hparams, const Homes& homes);
  // That will be read, whoever has them.
  static i64 file_bytes(const Gguf& gguf, const Hparams& hparams);
  // What there will be, with types and sizes and no data.
  static WeightPlaces shapes(const Gguf& gguf, const Hparams& hparams);

  // For a device: parts of a layer, or rows of the head, with data in `memory`, which grows as needed. Throw as the
  // constructor.
  LayerWeights read_attention(LayerId layer, Buffer& memory, const ReadProgress& progress) const;
  LayerWeights read_ffn(LayerId layer, Buffer& memory, const ReadProgress& progress) const;
  HeadPart read_head(i64 first_row, i64 rows, Buffer& memory, const ReadProgress& progress) const;

  // The device is lost: what it was home of is read into RAM, once. `memory` has bytes_of() or more. Failure: a file cannot
  // be read; nothing has changed. Passes that are under way may go on.
  Status restore(i32 device, Buffer memory, const ReadProgress& progress);

  const std::vector<LayerWeights>& layers() const { return places_.layers; }
  const Matrix& embedding() const { return embedding_; }  // [vocab, hidden], mapped
  const f32* output_norm() const { return places_.output_norm; }
  std::span<const HeadPart> head() const { return places_.head; }
  i64 bytes_of(i32 device) const;
  i64 bytes() const;  // of RAM

 private:
  void read_home(i32 device, const Buffer& memory, const ReadProgress& progress);
  template <class Place>
  void read_into(Buffer& memory, const ReadProgress& progress, Place&& place) const;

  const Gguf& gguf_;
  const Hparams& h_;
  Homes homes_;
  TensorReader reader_;
  std::vector<Buffer> memory_;  // what is always here, then of each lost device
  FileMapping embedding_file_;
  Matrix embedding_;
  WeightPlaces places_;
};

}  // namespace stoker
