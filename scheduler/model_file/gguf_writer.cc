#include "scheduler/model_file/gguf_writer.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <future>

#include "kernels/base/buffer.h"
#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "scheduler/model_file/gguf_shards.h"

namespace stoker {

// --- values
// -----------------------------------------------------------------------------------------------------------

GgufValue gguf_u16(u16 value) { return {.type = GgufValueType::U16, .value = u64{value}}; }
GgufValue gguf_u32(u32 value) { return {.type = GgufValueType::U32, .value = u64{value}}; }
GgufValue gguf_u64(u64 value) { return {.type = GgufValueType::U64, .value = value}; }
GgufValue gguf_i32(i32 value) { return {.type = GgufValueType::I32, .value = i64{value}}; }
GgufValue gguf_f32(f32 value) { return {.type = GgufValueType::F32, .value = f64{value}}; }
GgufValue gguf_bool(bool value) { return {.type = GgufValueType::Bool, .value = i64{value}}; }
GgufValue gguf_string(std::string value) {
  return {.type = GgufValueType::String, .value = std::move(value)};
}
GgufValue gguf_strings(std::vector<std::string> values) {
  return {.type = GgufValueType::Array, .element = GgufValueType::String, .value = std::move(values)};
}
GgufValue gguf_i32s(std::vector<i64> values) {
  return {.type = GgufValueType::Array, .element = GgufValueType::I32, .value = std::move(values)};
}
GgufValue gguf_u64s(std::vector<u64> values) {
  return {.type = GgufValueType::Array, .element = GgufValueType::U64, .value = std::move(values)};
}
GgufValue gguf_f32s(std::vector<f64> values) {
  return {.type = GgufValueType::Array, .element = GgufValueType::F32, .value = std::move(values)};
}

GgufFill gguf_from_memory(std::span<const std::byte> data) {
  return [data](i64 offset, std::span<std::byte> out) {
    CHECK(offset + static_cast<i64>(out.size()) <= static_cast<i64>(data.size()));
    std::memcpy(out.data(), data.data() + offset, out.size());
  };
}

// --- encoding
// ---------------------------------------------------------------------------------------------------------

namespace {

template <class T>
void put(std::string& out, T number) {
  out.append(reinterpret_cast<const char*>(&number),
             sizeof number);  // little-endian machines only, as the reader
}

void put_string(std::string& out, std::string_view text) {
  put(out, static_cast<u64>(text.size()));
  out += text;
}

template <class Wide>
void put_number(std::string& out, GgufValueType type, Wide number) {
  switch (type) {
    case GgufValueType::U8:
    case GgufValueType::Bool:
      return put(out, static_cast<u8>(number));
    case GgufValueType::I8:
      return put(out, static_cast<i8>(number));
    case GgufValueType::U16:
      return put(out, static_cast<u16>(number));
    case GgufValueType::I16:
      return put(out, static_cast<i16>(number));
    case GgufValueType::U32:
      return put(out, static_cast<u32>(number));
    case GgufValueType::I32:
      return put(out, static_cast<i32>(number));
    case GgufValueType::F32:
      return put(out, static_cast<f32>(number));
    case GgufValueType::U64:
      return put(out, static_cast<u64>(number));
    case GgufValueType::I64:
      return put(out, static_cast<i64>(number));
    case GgufValueType::F64:
      return put(out, static_cast<f64>(number));
    default:
      CHECK(false);
  }
}

void put_value(std::string& out, const GgufValue& value) {
  put(out, static_cast<u32>(value.type));
  std::visit(
      [&]<class T>(const T& content) {
        if constexpr (std::is_arithmetic_v<T>) {
          put_number(out, value.type, content);
        } else if constexpr (std::is_same_v<T, std::string>) {
          put_string(out, content);
        } else {
          put(out, static_cast<u32>(value.element));
          put(out, static_cast<u64>(content.size()));
          for (const auto& item : content) {
            if constexpr (std::is_same_v<T, std::vector<std::string>>)
              put_string(out, item);
            else
              put_number(out, value.element, item);
          }
        }
      },
      value.value);
}

// Does the variant hold what `type` (and `element`) promise?
bool consistent(const GgufValue& value) {
  bool is_array = value.value.index() >= 4;
  if (is_array != (value.type == GgufValueType::Array)) return false;
  switch (is_array ? value.element : value.type) {
    case GgufValueType::Array:
      return false;
    case GgufValueType::String:
      return value.value.index() % 4 == 3;
    case GgufValueType::F32:
    case GgufValueType::F64:
      return value.value.index() % 4 == 2;
    case GgufValueType::U8:
    case GgufValueType::U16:
    case GgufValueType::U32:
    case GgufValueType::U64:
      return value.value.index() % 4 == 1;
    default:
      return value.value.index() % 4 == 0;
  }
}

}  // namespace

// --- the model
// --------------------------------------------------------------------------------------------------------

// Tensors [first, end) and their places.
struct GgufWriter::Shard {
  size_t first = 0, end = 0;
  std::vector<i64> offsets;  // within the shard's data, aligned
  i64 data_bytes = 0;
};

GgufWriter::GgufWriter(Options options) : options_(options) {
  CHECK(options.version == 2 || options.version == 3);
  CHECK(options.alignment >= 8 && (options.alignment & (options.alignment - 1)) == 0);
}

void GgufWriter::set(const std::string& key, GgufValue value) {
  CHECK(consistent(value));
  CHECK(key != "general.alignment" && !key.starts_with("split."));
  for (auto& [k, old] : metadata_)
    if (k == key) {
      old = std::move(value);
      return;
    }
  metadata_.emplace_back(key, std::move(value));
}

void GgufWriter::set_at_the_end(const std::string& key, GgufValue placeholder, std::function<GgufValue()> value) {
  set(key, std::move(placeholder));
  late_values_[key] = std::move(value);
}

void GgufWriter::add(GgufTensorSpec tensor) {
  const BlockTypeInfo& block = info(tensor.type);
  if (tensor.shape.empty() || tensor.shape.size() > 4)
    fail("tensor '{}' has {} dimensions; GGUF allows 1 to 4", tensor.name, tensor.shape.size());
  i64 weights = 1;
  for (i64 size : tensor.shape)
    if (size < 1 || __builtin_mul_overflow(weights, size, &weights))
      fail("tensor '{}': a dimension of size {} is impossible", tensor.name, size);
  if (tensor.shape[0] % block.block_weights != 0)
    fail("tensor '{}': rows of {} weights are no whole number of {} blocks ({} weights); choose another type",
         tensor.name, tensor.shape[0], block.name, block.block_weights);
  i64 bytes = 0;
  if (__builtin_mul_overflow(weights / block.block_weights, block.block_bytes, &bytes))
    fail("tensor '{}' is too large", tensor.name);
  if (!names_.emplace(tensor.name, tensors_.size()).second) fail("two tensors are named '{}'", tensor.name);
  data_bytes_ += bytes;
  tensor_bytes_.push_back(bytes);
  tensors_.push_back(std::move(tensor));
}

std::vector<GgufWriter::Shard> GgufWriter::plan_shards() const {
  std::vector<Shard> shards(1);
  for (size_t i = 0; i < tensors_.size(); i++) {
    Shard* shard = &shards.back();
    i64 offset = round_up(shard->data_bytes, options_.alignment);
    if (options_.split_bytes > 0 && shard->end > shard->first &&
        offset + tensor_bytes_[i] > options_.split_bytes) {
      shards.push_back({.first = i, .end = i, .offsets = {}});
      shard = &shards.back();
      offset = 0;
    }
    shard->offsets.push_back(offset);
    shard->end = i + 1;
    shard->data_bytes = offset + tensor_bytes_[i];
  }
  return shards;
}

std::string GgufWriter::header(const Shard& shard, i64 number, i64 count, bool final) const {
  std::vector<std::pair<std::string, GgufValue>> pairs;
  if (number == 1) pairs = metadata_;
  if (options_.alignment != 32)
    pairs.emplace_back("general.alignment", gguf_u32(static_cast<u32>(options_.alignment)));
  if (count > 1) {
    pairs.emplace_back("split.no", gguf_u16(static_cast<u16>(number - 1)));
    pairs.emplace_back("split.count", gguf_u16(static_cast<u16>(count)));
    pairs.emplace_back("split.tensors.count", gguf_i32(static_cast<i32>(tensors_.size())));
  }
  std::string out = "GGUF";
  put(out, options_.version);
  put(out, static_cast<u64>(shard.end - shard.first));
  put(out, static_cast<u64>(pairs.size()));
  for (const auto& [key, value] : pairs) {
    put_string(out, key);
    auto late = late_values_.find(key);
    put_value(out, final && late != late_values_.end() ? late->second() : value);
  }
  for (size_t i = shard.first; i < shard.end; i++) {
    const GgufTensorSpec& tensor = tensors_[i];
    put_string(out, tensor.name);
    put(out, static_cast<u32>(tensor.shape.size()));
    for (i64 size : tensor.shape) put(out, static_cast<u64>(size));
    put(out, static_cast<u32>(tensor.type));
    put(out, static_cast<u64>(shard.offsets[i - shard.first]));
  }
  out.resize(static_cast<size_t>(round_up(static_cast<i64>(out.size()), options_.alignment)), '\0');
  return out;
}

// --- writing
// ----------------------------------------------------------------------------------------------------------

namespace {

// Collects bytes into writes of kPiece, whatever the sizes of headers, tensors and gaps are. One piece is
// written by a thread of its own while the next is filled. A piece lies in its buffer as far behind a page as
// in the file, so that it can be written directly.
class Pieces {
 public:
  static constexpr i64 kPiece = 16 * kMiB;

  Pieces() = default;
  ~Pieces() {
    if (writing_.valid()) writing_.wait();
  }
  Pieces(const Pieces&) = delete;
  Pieces& operator=(const Pieces&) = delete;

  i64 position() const { return start_ + used_ - in_page(); }
  void start(OutputFile& file) {
    file_ = &file;
    begin_at(0);
  }
  // Throws what the writing threw.
  void finish() {
    flush();
    if (writing_.valid()) writing_.get();
  }
  // Room for up to `wanted` bytes, already counted as written.
  std::span<std::byte> grow(i64 wanted) {
    if (used_ == kPiece) flush();
    i64 bytes = std::min(wanted, kPiece - used_);
    std::span<std::byte> room = buffers_[current_].as<std::byte>(bytes, used_);
    used_ += bytes;
    return room;
  }
  // Zeros up to file offset `target`: room for the header, alignment gaps.
  void pad_to(i64 target) {
    while (position() < target) {
      std::span<std::byte> room = grow(target - position());
      std::memset(room.data(), 0, room.size());
    }
  }
  void hole(i64 bytes) {
    finish();
    file_->skip(bytes);
    begin_at(file_->position());
  }

 private:
  static constexpr i64 kPage = 4096;

  i64 in_page() const { return start_ % kPage; }
  void begin_at(i64 position) {
    start_ = position;
    used_ = in_page();
  }
  void flush() {
    std::span<const std::byte> piece = buffers_[current_].as<const std::byte>(used_ - in_page(), in_page());
    if (writing_.valid()) writing_.get();
    writing_ = std::async(std::launch::async, [file = file_, piece] { file->write(piece); });
    current_ = 1 - current_;
    begin_at(position());
  }

  std::array<Buffer, 2> buffers_{Buffer(kPiece, "writing a model file"),
                                 Buffer(kPiece, "writing a model file")};
  size_t current_ = 0;
  OutputFile* file_ = nullptr;
  i64 start_ = 0;  // file offset of the current piece
  i64 used_ = 0;   // end of the current piece in its buffer
  std::future<void> writing_;
};

}  // namespace

static std::string without_suffix(const std::string& path) {
  return path.ends_with(".gguf") ? path.substr(0, path.size() - 5) : path;
}

std::vector<OutputFile> GgufWriter::prepare(const std::string& path, const Progress& progress) const {
  std::vector<Shard> shards = plan_shards();
  i64 count = static_cast<i64>(shards.size());
  if (count > 65535) fail("{}: splitting would make {} files; choose a larger split size", path, count);
  i64 total = 0;
  for (size_t i = 0; i < tensors_.size(); i++) total += tensors_[i].fill ? tensor_bytes_[i] : 0;
  if (i64 free = free_bytes_at(path); free >= 0 && total > free)
    fail("{}: the disk is too full: {:.1f} GB are needed there and {:.1f} GB are free", path,
         static_cast<f64>(total) / 1e9, static_cast<f64>(free) / 1e9);

  std::vector<OutputFile> files;  // all are complete before the first gets its name
  Pieces pieces;                  // dies first: its thread may still write to a file
  i64 done = 0;
  for (i64 number = 1; number <= count; number++) {
    const Shard& shard = shards[static_cast<size_t>(number - 1)];
    OutputFile& file = files.emplace_back(count == 1 ? path : shard_path(without_suffix(path), number, count));
    pieces.start(file);
    pieces.pad_to(static_cast<i64>(header(shard, number, count, false).size()));
    i64 data = pieces.position();
    for (size_t i = shard.first; i < shard.end; i++) {
      pieces.pad_to(data + shard.offsets[i - shard.first]);
      if (!tensors_[i].fill) {
        pieces.hole(tensor_bytes_[i]);
        continue;
      }
      for (i64 at = 0; at < tensor_bytes_[i];) {
        std::span<std::byte> room = pieces.grow(tensor_bytes_[i] - at);
        tensors_[i].fill(at, room);
        at += static_cast<i64>(room.size());
        done += static_cast<i64>(room.size());
        if (progress) progress(done, total);
      }
    }
    pieces.finish();
  }
  for (i64 number = 1; number <= count; number++) {
    const Shard& shard = shards[static_cast<size_t>(number - 1)];
    std::string final = header(shard, number, count, true);
    CHECK(final.size() == header(shard, number, count, false).size());
    OutputFile& file = files[static_cast<size_t>(number - 1)];
    file.overwrite_start(std::as_bytes(std::span(final)));
    file.finish(options_.durable);
  }
  return files;
}

std::vector<std::string> GgufWriter::write(const std::string& path, const Progress& progress) const {
  std::vector<std::string> paths;
  for (OutputFile& file : prepare(path, progress)) {
    file.commit();
    paths.push_back(file.path());
  }
  return paths;
}

}  // namespace stoker
