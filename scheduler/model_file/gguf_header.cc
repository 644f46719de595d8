// Every number in the file is a claim by a stranger: it is compared with what the file can hold before
// anything is allocated or computed from it. Counts are compared with the smallest size their items can have.
#include "scheduler/model_file/gguf_header.h"

#include <bit>
#include <cstring>
#include <limits>
#include <unordered_set>

#include "kernels/base/error.h"
#include "scheduler/model_file/pack.h"

namespace stoker {

static_assert(std::endian::native == std::endian::little, "GGUF numbers are copied as they are");

namespace {

constexpr i64 kSmallestPair = 8 + 4 + 1;            // key length, type, one byte
constexpr i64 kSmallestTensor = 8 + 4 + 8 + 4 + 8;  // name length, dimensions, one of them, type, offset
constexpr u64 kLongestName = 65535;                 // the format's limit for keys
constexpr i64 kLargestAlignment = 1 * kGiB;

struct ValueTypeInfo {
  std::string_view name;
  i64 bytes;  // of one value; of a string: its length field
};

// Indexed by GgufValueType.
constexpr ValueTypeInfo kValueTypes[] = {{"U8", 1},  {"I8", 1},  {"U16", 2},  {"I16", 2},    {"U32", 4},
                                         {"I32", 4}, {"F32", 4}, {"Bool", 1}, {"String", 8}, {"Array", 12},
                                         {"U64", 8}, {"I64", 8}, {"F64", 8}};
constexpr u32 kValueTypeCount = std::size(kValueTypes);

// The class of C++ number a value type is widened to.
enum class Widened { signed_int, unsigned_int, real };

Widened widened(GgufValueType type) {
  switch (type) {
    case GgufValueType::U8:
    case GgufValueType::U16:
    case GgufValueType::U32:
    case GgufValueType::U64:
      return Widened::unsigned_int;
    case GgufValueType::F32:
    case GgufValueType::F64:
      return Widened::real;
    default:
      return Widened::signed_int;
  }
}

template <class T>
T load(const char* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// One number of the file, widened to Wide.
template <class Wide>
Wide load_as(GgufValueType type, const char* p) {
  switch (type) {
    case GgufValueType::U8:
    case GgufValueType::Bool:
      return static_cast<Wide>(load<u8>(p));
    case GgufValueType::I8:
      return static_cast<Wide>(load<i8>(p));
    case GgufValueType::U16:
      return static_cast<Wide>(load<u16>(p));
    case GgufValueType::I16:
      return static_cast<Wide>(load<i16>(p));
    case GgufValueType::U32:
      return static_cast<Wide>(load<u32>(p));
    case GgufValueType::I32:
      return static_cast<Wide>(load<i32>(p));
    case GgufValueType::F32:
      return static_cast<Wide>(load<f32>(p));
    case GgufValueType::U64:
      return static_cast<Wide>(load<u64>(p));
    case GgufValueType::I64:
      return static_cast<Wide>(load<i64>(p));
    case GgufValueType::F64:
      return static_cast<Wide>(load<f64>(p));
    default:
      return Wide{};
  }
}

class Parser {
 public:
  explicit Parser(HeaderBytes& bytes) : bytes_(bytes) {}

  GgufHeader parse() {
    header_.file = {bytes_.path(), bytes_.file_bytes()};
    read_magic_and_version();
    i64 tensors = read_count("tensors", kSmallestTensor);
    i64 pairs = read_count("metadata keys", kSmallestPair);
    for (i64 i = 0; i < pairs; i++) read_pair(i);
    read_alignment();
    for (i64 i = 0; i < tensors; i++) read_tensor(i);
    place_tensors();
    return std::move(header_);
  }

 private:
  void read_magic_and_version();
  i64 read_count(std::string_view what, i64 smallest);
  void read_pair(i64 index);
  GgufValue read_value();
  void read_numbers(GgufValue& value, i64 count, bool array);
  void read_alignment();
  void read_tensor(i64 index);
  void read_shape(GgufTensor& tensor);
  void place_tensors();

  template <class T>
  T number() {
    return load<T>(bytes_.take(sizeof(T), where_).data());
  }
  std::string string() { return std::string(bytes_.take(number<u64>(), where_)); }
  GgufValueType value_type();
  std::string name(std::string_view what, i64 index);

  template <class... Args>
  [[noreturn]] void bad(fmt::format_string<Args...> text, Args&&... args) {
    fail("{}: {}: {}", bytes_.path(), where_, fmt::format(text, std::forward<Args>(args)...));
  }

  HeaderBytes& bytes_;
  GgufHeader header_;
  std::string where_ = "the first 24 bytes";  // what is being read, for messages
  std::unordered_set<std::string> seen_;      // names so far, of keys or of tensors
};

void Parser::read_magic_and_version() {
  const std::string& path = bytes_.path();
  constexpr i64 kHead = 16;  // enough to recognise what people mistake for a model
  std::string_view head = bytes_.take(static_cast<u64>(std::min<i64>(4, bytes_.remaining())), where_);
  if (head != "GGUF") {
    std::string start(head);
    start += bytes_.take(static_cast<u64>(std::min<i64>(kHead - 4, bytes_.remaining())), where_);
    if (start.starts_with("version https:"))
      fail("{}: this is a Git LFS pointer, not the model itself; fetch it with `git lfs pull`", path);
    fail("{}: not a GGUF file (it begins with '{}'); stoker reads models in the GGUF format", path,
         printable(start));
  }
  u32 version = number<u32>();
  if (version != 0 && (version & 0xffff) == 0)
    fail("{}: a big-endian GGUF file; stoker reads little-endian ones: convert it or get the usual variant",
         path);
  if (version < 2 || version > 3)
    fail("{}: GGUF version {}; stoker reads versions 2 and 3{}", path, version,
         version == 1 ? ": convert the model again with a current converter" : "");
}

i64 Parser::read_count(std::string_view what, i64 smallest) {
  u64 count = number<u64>();
  if (count > static_cast<u64>(bytes_.remaining() / smallest))
    fail(
        "{}: the header announces {} {}, more than {} bytes can hold: the file is truncated or damaged; get "
        "it again",
        bytes_.path(), count, what, bytes_.remaining());
  return static_cast<i64>(count);
}

std::string Parser::name(std::string_view what, i64 index) {
  where_ = fmt::format("the name of {} number {}", what, index);
  u64 length = number<u64>();
  if (length > kLongestName) bad("it claims to be {} bytes long: the file is damaged; get it again", length);
  std::string found(bytes_.take(length, where_));
  where_ = fmt::format("{} '{}'", what, printable(found));
  if (!seen_.insert(found).second) bad("it is in the file twice: the file is damaged; get it again");
  return found;
}

void Parser::read_pair(i64 index) {
  std::string key = name("metadata key", index);
  header_.metadata.emplace_back(std::move(key), read_value());
}

GgufValueType Parser::value_type() {
  u32 id = number<u32>();
  if (id >= kValueTypeCount)
    bad("value type {} is unknown; stoker knows GGUF's types 0 to {}", id, kValueTypeCount - 1);
  return static_cast<GgufValueType>(id);
}

GgufValue Parser::read_value() {
  GgufValue value;
  value.type = value_type();
  if (value.type == GgufValueType::String) {
    value.value = string();
    return value;
  }
  if (value.type != GgufValueType::Array) {
    read_numbers(value, 1, false);
    return value;
  }
  value.element = value_type();
  if (value.element == GgufValueType::Array) bad("an array of arrays, which stoker does not read");
  u64 count = number<u64>();
  i64 item_bytes = kValueTypes[static_cast<u32>(value.element)].bytes;
  if (count > static_cast<u64>(bytes_.remaining() / item_bytes))
    bad("an array of {} values, more than the {} bytes left can hold: the file is truncated or damaged; get "
        "it again",
        count, bytes_.remaining());
  if (value.element != GgufValueType::String) {
    read_numbers(value, static_cast<i64>(count), true);
    return value;
  }
  std::vector<std::string> strings;  // no reserve: the count is only known to be possible, not true
  for (u64 i = 0; i < count; i++) strings.push_back(string());
  value.value = std::move(strings);
  return value;
}

template <class Wide>
static std::vector<Wide> load_all(GgufValueType type, std::string_view raw, i64 item_bytes) {
  std::vector<Wide> numbers(raw.size() / static_cast<size_t>(item_bytes));
  for (size_t i = 0; i < numbers.size(); i++)
    numbers[i] = load_as<Wide>(type, raw.data() + i * static_cast<size_t>(item_bytes));
  return numbers;
}

void Parser::read_numbers(GgufValue& value, i64 count, bool array) {
  GgufValueType type = array ? value.element : value.type;
  i64 item_bytes = kValueTypes[static_cast<u32>(type)].bytes;
  std::string_view raw = bytes_.take(static_cast<u64>(count * item_bytes), where_);
  if (type == GgufValueType::Bool)
    for (char c : raw)
      if (c != 0 && c != 1) bad("a Bool of value {}: the file is damaged; get it again", static_cast<int>(static_cast<unsigned char>(c)));
  auto store = [&]<class Wide>(Wide) {
    if (array)
      value.value = load_all<Wide>(type, raw, item_bytes);
    else
      value.value = load_as<Wide>(type, raw.data());
  };
  switch (widened(type)) {
    case Widened::signed_int:
      store(i64{});
      break;
    case Widened::unsigned_int:
      store(u64{});
      break;
    case Widened::real:
      store(f64{});
      break;
  }
}

void Parser::read_alignment() {
  seen_.clear();
  const GgufValue* value = header_.find("general.alignment");
  if (value == nullptr) return;
  where_ = "metadata key 'general.alignment'";
  const u64* alignment = std::get_if<u64>(&value->value);
  if (alignment == nullptr || !std::has_single_bit(*alignment) ||
      *alignment > static_cast<u64>(kLargestAlignment))
    bad("it must be an unsigned power of two up to 2^30: the file is damaged; get it again");
  header_.alignment = static_cast<i64>(*alignment);
}

void Parser::read_tensor(i64 index) {
  GgufTensor tensor;
  tensor.name = name("tensor", index);
  read_shape(tensor);
  u32 type = number<u32>();
  const BlockTypeInfo* block = find_block_type(type);
  // Bytes without arithmetic may stand only where nobody computes with them.
  if (type == static_cast<u32>(BlockType::I8) && is_packed_tensor(tensor.name)) block = &info(BlockType::I8);
  if (block == nullptr)
    bad("its block type is number {}, which stoker cannot read; use a file made with the standard formats "
        "(Q4_K, IQ2_XXS "
        "...)",
        type);
  tensor.type = block->type;
  if (tensor.cols() % block->block_weights != 0)
    bad("rows of {} weights cannot be {} blocks of {}: the file is damaged", tensor.cols(), block->name,
        block->block_weights);
  if (__builtin_mul_overflow(tensor.weights() / block->block_weights, block->block_bytes, &tensor.bytes))
    bad("its size does not fit 64 bits: the file is damaged");
  u64 offset = number<u64>();
  if (offset % static_cast<u64>(header_.alignment) != 0)
    bad("its data offset {} is not a multiple of the alignment {}: the file is damaged", offset,
        header_.alignment);
  if (offset > static_cast<u64>(bytes_.file_bytes()))
    bad("its data would begin {} bytes into a file of {}: the file is truncated or damaged; get it again",
        offset, bytes_.file_bytes());
  tensor.offset = static_cast<i64>(offset);
  header_.tensors.push_back(std::move(tensor));
}

void Parser::read_shape(GgufTensor& tensor) {
  u32 dimensions = number<u32>();
  if (dimensions < 1 || dimensions > 4) bad("it has {} dimensions; 1 to 4 are possible", dimensions);
  i64 weights = 1;
  for (u32 d = 0; d < dimensions; d++) {
    u64 size = number<u64>();
    if (size == 0 || size > static_cast<u64>(std::numeric_limits<i64>::max()) ||
        __builtin_mul_overflow(weights, static_cast<i64>(size), &weights))
      bad("dimension {} of size {} is impossible: the file is damaged", d, size);
    tensor.shape.push_back(static_cast<i64>(size));
  }
}

// Offsets in the table count from the data section, which begins at the first aligned byte after the table.
void Parser::place_tensors() {
  i64 data = round_up(bytes_.position(), header_.alignment);
  for (GgufTensor& tensor : header_.tensors) {
    i64 end = 0;
    tensor.offset += data;  // both are at most the file's size, plus an alignment: no overflow
    if (!__builtin_add_overflow(tensor.offset, tensor.bytes, &end) && end <= bytes_.file_bytes()) continue;
    where_ = fmt::format("tensor '{}'", printable(tensor.name));
    bad("its {} bytes at offset {} do not fit the file of {} bytes: the file is truncated; get it again",
        tensor.bytes, tensor.offset, bytes_.file_bytes());
  }
}

}  // namespace

const GgufValue* GgufHeader::find(std::string_view key) const {
  for (const auto& [k, value] : metadata)
    if (k == key) return &value;
  return nullptr;
}

GgufHeader read_gguf_header(HeaderBytes& bytes) { return Parser(bytes).parse(); }

std::string_view type_name(GgufValueType type) {
  u32 id = static_cast<u32>(type);
  return id < kValueTypeCount ? kValueTypes[id].name : "unknown";
}

std::string printable(std::string_view name) {
  constexpr size_t kShown = 120;
  std::string out;
  for (unsigned char c : name.substr(0, kShown)) {
    if (c < 0x20 || c == 0x7f)
      out += fmt::format("\\x{:02x}", c);
    else
      out += static_cast<char>(c);
  }
  if (name.size() > kShown) out += "...";
  return out;
}

}  // namespace stoker
