// GgufWriter: the one place that writes GGUF files (version 3 unless asked otherwise): synthetic models,
// packs, tests.
//
// A file is written front to back in large pieces under a temporary name (PATH.partial), its header last, synced
// if large, and renamed at the end: a file with the final name is complete, and a partial one, left behind by a
// kill, is no GGUF file. Whatever else goes wrong (disk full, a source that throws), the partial files are removed
// and an Error says what happened. Owner: one thread.
#pragma once

#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/types.h"
#include "scheduler/model_file/gguf.h"
#include "scheduler/model_file/output_file.h"

namespace stoker {

// Makers of metadata values.
GgufValue gguf_u32(u32 value);
GgufValue gguf_i32(i32 value);
GgufValue gguf_u16(u16 value);
GgufValue gguf_u64(u64 value);
GgufValue gguf_f32(f32 value);
GgufValue gguf_bool(bool value);
GgufValue gguf_string(std::string value);
GgufValue gguf_strings(std::vector<std::string> values);
GgufValue gguf_i32s(std::vector<i64> values);
GgufValue gguf_u64s(std::vector<u64> values);
GgufValue gguf_f32s(std::vector<f64> values);

// Fills `out` with the bytes of a tensor that begin at `offset`. Called with consecutive ranges, in order;
// the ranges begin and end anywhere, not only at blocks.
using GgufFill = std::function<void(i64 offset, std::span<std::byte> out)>;

struct GgufTensorSpec {
  std::string name;
  BlockType type = BlockType::F32;
  std::vector<i64> shape;  // ne: shape[0] is the row length; 1 to 4 dimensions
  GgufFill fill;           // empty: the data is left as a hole in the file, which reads as zeros
};

// A fill that copies from memory, which must outlive the writing.
GgufFill gguf_from_memory(std::span<const std::byte> data);

class GgufWriter {
 public:
  struct Options {
    u32 version = 3;  // or 2
    i64 alignment = 32;
    // Begin a new shard when a shard's tensor data would exceed this; 0: one file. A single tensor may be
    // larger.
    i64 split_bytes = 0;
    // Wait until the disk has every byte, also of small files.
    bool durable = false;
  };
  using Progress = std::function<void(i64 done_bytes, i64 total_bytes)>;  // of tensor data that is not a hole

  GgufWriter() = default;
  explicit GgufWriter(Options options);

  // In order of first mention; setting a key again replaces its value. `general.alignment` and `split.*` are
  // the writer's own and must not be set.
  void set(const std::string& key, GgufValue value);
  // The same for a value that is known only when all tensors have been written: `value` is called then, and must
  // return one of the type and length of `placeholder`.
  void set_at_the_end(const std::string& key, GgufValue placeholder, std::function<GgufValue()> value);
  // In order. Throws Error for a name twice, an impossible shape, or rows that are no whole number of blocks.
  void add(GgufTensorSpec tensor);

  i64 data_bytes() const { return data_bytes_; }  // all tensors, holes included

  // Writes everything under temporary names. Nothing is lost or replaced until each is told to commit().
  std::vector<OutputFile> prepare(const std::string& path, const Progress& progress = {}) const;

  // prepare() and commit(); returns the paths. When the data is split in N > 1 shards, PATH.gguf becomes
  // PATH-00001-of-0000N.gguf ... and only the first carries the metadata. May be called again for another
  // path.
  std::vector<std::string> write(const std::string& path, const Progress& progress = {}) const;

 private:
  struct Shard;
  std::vector<Shard> plan_shards() const;
  std::string header(const Shard& shard, i64 number, i64 count, bool final) const;

  Options options_;
  std::vector<std::pair<std::string, GgufValue>> metadata_;
  std::map<std::string, std::function<GgufValue()>> late_values_;
  std::vector<GgufTensorSpec> tensors_;
  std::vector<i64> tensor_bytes_;
  std::map<std::string, size_t, std::less<>> names_;
  i64 data_bytes_ = 0;
};

}  // namespace stoker
