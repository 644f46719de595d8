#include "scheduler/model_file/gguf.h"

#include <filesystem>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "scheduler/model_file/gguf_header.h"
#include "scheduler/model_file/gguf_shards.h"
#include "scheduler/model_file/header_bytes.h"
#include "scheduler/model_file/pack.h"

namespace stoker {

static GgufHeader read_header_of(const std::string& path) {
  HeaderBytes bytes(path);
  return read_gguf_header(bytes);
}

Gguf Gguf::open(const std::string& path) {
  Gguf gguf;
  gguf.add(read_header_of(path));
  i64 shards = gguf.shard_count();
  if (shards > 1) gguf.add_other_shards(shards);
  gguf.refuse_stripe();
  if (pack_stripes(gguf) > 1) gguf.add_other_stripes();
  return gguf;
}

Gguf Gguf::parse(std::string_view bytes, const std::string& path) {
  HeaderBytes header(bytes, path);
  Gguf gguf;
  gguf.add(read_gguf_header(header));
  if (i64 shards = gguf.shard_count(); shards > 1)
    fail("{}: one of {} files of a split model; it can only be opened from disk", path, shards);
  if (i64 stripes = pack_stripes(gguf); stripes > 1)
    fail("{}: one of {} files of a striped pack; it can only be opened from disk", path, stripes);
  return gguf;
}

// 0 and 1 both mean unsplit: tools that merge shards leave the key behind.
i64 Gguf::shard_count() const { return get_int("split.count").value_or(0); }

void Gguf::add(GgufHeader&& header) {
  i32 file = static_cast<i32>(files_.size());
  files_.push_back(header.file);
  for (GgufTensor& tensor : header.tensors) {
    tensor.file = file;
    auto [place, fresh] = tensor_index_.emplace(tensor.name, tensors_.size());
    if (!fresh)
      fail("{}: tensor '{}' is in {} as well: the shards are not of one model; get them again",
           header.file.path, printable(tensor.name),
           files_[static_cast<size_t>(tensors_[place->second].file)].path);
    tensors_.push_back(std::move(tensor));
  }
  if (file > 0) return;  // only the first shard carries the model's metadata
  for (auto& [key, value] : header.metadata) {
    metadata_index_.emplace(key, metadata_.size());
    metadata_.emplace_back(key, std::move(value));
  }
}

// What `header` says about itself must agree with the name it was found under.
static void check_shard(const Gguf& shard_keys, const std::string& path, i64 number, i64 count) {
  i64 no = shard_keys.get_int("split.no").value_or(-1);
  i64 of = shard_keys.get_int("split.count").value_or(0);
  if (no != number - 1 || of != count)
    fail(
        "{}: expected part {} of {}, but its keys split.no and split.count say part {} of {}: the files are "
        "not of one "
        "model; get them again",
        path, number, count, no + 1, of);
}

void Gguf::add_other_shards(i64 count) {
  const std::string path = files_[0].path;
  std::optional<ShardName> name = parse_shard_name(path);
  i64 number = get_int("split.no").value_or(0) + 1;
  if (number != 1)
    fail("{}: this is part {} of a model split into {} files; give the first{}{}", path, number, count,
         name ? ": " : "", name ? shard_path(name->prefix, 1, count) : "");
  if (!name || name->number != 1 || name->count != count)
    fail(
        "{}: this is the first of {} files of a split model, but its name does not say so, so that the "
        "others cannot be "
        "found; rename it to NAME-00001-of-{:05d}.gguf",
        path, count, count);
  std::string missing;
  for (i64 i = 2; i <= count; i++) {
    std::string shard = shard_path(name->prefix, i, count);
    if (missing.size() < 1000 && !std::filesystem::exists(shard))
      missing += (missing.empty() ? "" : ", ") + shard;
  }
  if (!missing.empty()) fail("{}: the model has {} files, but these are missing: {}", path, count, missing);
  for (i64 i = 2; i <= count; i++) {
    GgufHeader header = read_header_of(shard_path(name->prefix, i, count));
    Gguf keys;  // typed access to the few keys of this shard
    keys.files_.push_back(header.file);
    for (auto& [key, value] : header.metadata)
      if (key.starts_with("split.")) {
        keys.metadata_index_.emplace(key, keys.metadata_.size());
        keys.metadata_.emplace_back(key, value);
      }
    check_shard(keys, header.file.path, i, count);
    add(std::move(header));
  }
  i64 found = static_cast<i64>(tensors_.size());
  if (i64 wanted = get_int("split.tensors.count").value_or(found); wanted != found)
    fail(
        "{}: the {} files hold {} tensors, but split.tensors.count says {}: a file is from another version "
        "of the model; "
        "get them again",
        path, count, found, wanted);
}

// A stripe has no metadata of the model.
void Gguf::refuse_stripe() const {
  if (std::optional<i64> stripe = get_int("stoker.pack.stripe"))
    fail("{}: stripe {} of a packed model; give its main file: {}", path(), *stripe + 1,
         printable(get_string("stoker.pack.main").value_or("the one that `stoker pack` named first")));
}

void Gguf::add_other_stripes() {
  i64 number = 1;
  for (const std::string& path : find_stripes(*this)) {
    Gguf stripe;
    GgufHeader header = read_header_of(path);
    stripe.add(GgufHeader(header));
    check_stripe(*this, stripe, number++);
    add(std::move(header));
  }
}

// --- tensors
// ----------------------------------------------------------------------------------------------------------

i64 GgufTensor::weights() const {
  i64 product = 1;
  for (i64 size : shape) product *= size;
  return product;
}

const GgufTensor* Gguf::find_tensor(std::string_view name) const {
  auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

const GgufTensor& Gguf::tensor(std::string_view name) const {
  const GgufTensor* found = find_tensor(name);
  if (found == nullptr)
    fail("{}: tensor '{}' is missing; the file is incomplete or of another architecture", path(), name);
  return *found;
}

// --- metadata
// ---------------------------------------------------------------------------------------------------------

const std::string& Gguf::path() const {
  CHECK(!files_.empty());
  return files_[0].path;
}

const GgufValue* Gguf::find(std::string_view key) const {
  auto found = metadata_index_.find(key);
  return found == metadata_index_.end() ? nullptr : &metadata_[found->second].second;
}

[[noreturn]] static void wrong_type(const Gguf& gguf, std::string_view key, const GgufValue& value,
                                    std::string_view wanted) {
  std::string is(type_name(value.type));
  if (value.type == GgufValueType::Array) is = fmt::format("Array of {}", type_name(value.element));
  fail("{}: metadata key '{}' is of type {}, expected {}", gguf.path(), key, is, wanted);
}

static i64 to_signed(const Gguf& gguf, std::string_view key, u64 value) {
  if (value > static_cast<u64>(std::numeric_limits<i64>::max()))
    fail("{}: metadata key '{}' is {}, which is too large", gguf.path(), key, value);
  return static_cast<i64>(value);
}

std::optional<i64> Gguf::get_int(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const u64* number = std::get_if<u64>(&value->value)) return to_signed(*this, key, *number);
  const i64* number = std::get_if<i64>(&value->value);
  if (number == nullptr || value->type == GgufValueType::Bool) wrong_type(*this, key, *value, "an integer");
  return *number;
}

std::optional<f64> Gguf::get_float(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const f64* number = std::get_if<f64>(&value->value)) return *number;
  if (const u64* number = std::get_if<u64>(&value->value)) return static_cast<f64>(*number);
  const i64* number = std::get_if<i64>(&value->value);
  if (number == nullptr || value->type == GgufValueType::Bool) wrong_type(*this, key, *value, "a number");
  return static_cast<f64>(*number);
}

std::optional<bool> Gguf::get_bool(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type != GgufValueType::Bool) wrong_type(*this, key, *value, "Bool");
  return std::get<i64>(value->value) != 0;
}

std::optional<std::string> Gguf::get_string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  const std::string* text = std::get_if<std::string>(&value->value);
  if (text == nullptr) wrong_type(*this, key, *value, "String");
  return *text;
}

const std::vector<std::string>* Gguf::get_strings(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return nullptr;
  const auto* strings = std::get_if<std::vector<std::string>>(&value->value);
  if (strings == nullptr) wrong_type(*this, key, *value, "Array of String");
  return strings;
}

std::optional<std::vector<i64>> Gguf::get_ints(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* numbers = std::get_if<std::vector<i64>>(&value->value)) return *numbers;
  const auto* numbers = std::get_if<std::vector<u64>>(&value->value);
  if (numbers == nullptr) wrong_type(*this, key, *value, "Array of integers");
  std::vector<i64> result;
  for (u64 number : *numbers) result.push_back(to_signed(*this, key, number));
  return result;
}

std::optional<std::vector<f64>> Gguf::get_floats(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* numbers = std::get_if<std::vector<f64>>(&value->value)) return *numbers;
  std::vector<f64> result;
  if (const auto* ints = std::get_if<std::vector<i64>>(&value->value))
    for (i64 number : *ints) result.push_back(static_cast<f64>(number));
  else if (const auto* naturals = std::get_if<std::vector<u64>>(&value->value))
    for (u64 number : *naturals) result.push_back(static_cast<f64>(number));
  else
    wrong_type(*this, key, *value, "Array of numbers");
  return result;
}

template <class T>
static T needed(const Gguf& gguf, std::string_view key, std::optional<T> value) {
  if (!value) fail("{}: metadata key '{}' is missing", gguf.path(), key);
  return *std::move(value);
}

i64 Gguf::need_int(std::string_view key) const { return needed(*this, key, get_int(key)); }
f64 Gguf::need_float(std::string_view key) const { return needed(*this, key, get_float(key)); }
std::string Gguf::need_string(std::string_view key) const { return needed(*this, key, get_string(key)); }

}  // namespace stoker
