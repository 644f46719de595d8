// GGUF, versions 2 and 3, one file or several shards: metadata and tensor table. Tensor data is never read here.
//
// A GGUF file is untrusted input: every size is checked against the file before it is used, and every failure is an
// Error that names the file and the tensor or key. Format: reference gguf-deepseek2 section 1.1.
// Immutable after open(); any thread may read it.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kernels/base/types.h"
#include "kernels/format/block_type.h"

namespace stoker {

enum class GgufValueType : u32 {
  U8 = 0, I8 = 1, U16 = 2, I16 = 3, U32 = 4, I32 = 5, F32 = 6, Bool = 7, String = 8, Array = 9, U64 = 10, I64 = 11,
  F64 = 12,
};

// One metadata value. Integers are widened (the file's own type is kept for writing it again).
struct GgufValue {
  GgufValueType type = GgufValueType::U32;
  GgufValueType element = GgufValueType::U32;  // of an Array
  // i64: signed types and Bool; u64: unsigned types; f64: F32, F64
  std::variant<i64, u64, f64, std::string, std::vector<i64>, std::vector<u64>, std::vector<f64>,
               std::vector<std::string>>
      value;
};

struct GgufTensor {
  std::string name;
  BlockType type = BlockType::F32;
  std::vector<i64> shape;  // ne: shape[0] is the row length (fastest); 1 to 4 dimensions
  i32 file = 0;            // index into Gguf::files()
  i64 offset = 0;          // of the data, from the start of that file
  i64 bytes = 0;

  i64 weights() const;     // product of shape
  i64 cols() const { return shape[0]; }
  i64 rows() const { return weights() / shape[0]; }  // all other dimensions together
};

struct GgufFileInfo {
  std::string path;
  i64 bytes = 0;
};

struct GgufHeader;  // of one file

class Gguf {
 public:
  // Opens a single file, all shards given the first, or all stripes of a pack given its main file. Throws Error.
  static Gguf open(const std::string& path);
  // The same over bytes in memory (fuzzing, tests); `path` is used in messages only. A file that needs others is refused.
  static Gguf parse(std::string_view bytes, const std::string& path);

  const std::vector<GgufFileInfo>& files() const { return files_; }
  const std::string& path() const;  // of the first file
  const std::vector<GgufTensor>& tensors() const { return tensors_; }  // in file order
  const GgufTensor* find_tensor(std::string_view name) const;          // nullptr when absent
  const GgufTensor& tensor(std::string_view name) const;               // throws Error when absent

  // Metadata of the first shard, in file order.
  const std::vector<std::pair<std::string, GgufValue>>& metadata() const { return metadata_; }
  const GgufValue* find(std::string_view key) const;

  // Typed access. get_*: absent -> nullopt; present with a type that does not convert -> Error naming the key.
  std::optional<i64> get_int(std::string_view key) const;
  std::optional<f64> get_float(std::string_view key) const;  // integers convert
  std::optional<bool> get_bool(std::string_view key) const;
  std::optional<std::string> get_string(std::string_view key) const;
  const std::vector<std::string>* get_strings(std::string_view key) const;
  std::optional<std::vector<i64>> get_ints(std::string_view key) const;
  std::optional<std::vector<f64>> get_floats(std::string_view key) const;
  // need_*: absent -> Error "PATH: metadata key 'K' is missing".
  i64 need_int(std::string_view key) const;
  f64 need_float(std::string_view key) const;
  std::string need_string(std::string_view key) const;

 private:
  void add(GgufHeader&& header);
  void add_other_shards(i64 count);
  void add_other_stripes();
  void refuse_stripe() const;
  i64 shard_count() const;

  std::vector<GgufFileInfo> files_;
  std::vector<GgufTensor> tensors_;
  std::map<std::string, size_t, std::less<>> tensor_index_;
  std::vector<std::pair<std::string, GgufValue>> metadata_;
  std::map<std::string, size_t, std::less<>> metadata_index_;
};

}  // namespace stoker
