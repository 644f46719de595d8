#include "runtime/slot_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <variant>

#include "kernels/base/checksum.h"
#include "kernels/base/error.h"
#include "runtime/engine.h"
#include "runtime/kv_cache.h"
#include "scheduler/model_file/gguf.h"
#include "scheduler/model_file/output_file.h"

namespace stoker {

namespace {

constexpr std::array<char, 8> kMagic = {'S', 'T', 'K', 'R', 'S', 'L', 'O', 'T'};
constexpr u32 kVersion = 1;
constexpr i64 kSampleBytes = 4096;  // of a tensor

struct Header {
  std::array<char, 8> magic = kMagic;
  u32 version = kVersion;
  u32 cache_type = 0;
  u64 model_id = 0;
  i64 layers = 0;
  i64 row_bytes = 0;
  i64 tokens = 0;
};
static_assert(sizeof(Header) == 48);

i64 row_bytes(const KvCache& cache) { return cache.row(LayerId(0), 1) - cache.row(LayerId(0), 0); }

template <class T>
std::span<const std::byte> bytes_of(std::span<const T> values) {
  return std::as_bytes(values);
}

// A file being read, and the sum over what was read.
class Input {
 public:
  explicit Input(const std::string& path) : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_ < 0) fail("{}: cannot open it: {}", path, std::strerror(errno));
  }
  ~Input() { ::close(fd_); }
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;

  i64 size() const {
    struct stat info {};
    if (::fstat(fd_, &info) != 0) fail("{}: {}", path_, std::strerror(errno));
    return info.st_size;
  }
  void read_at(i64 offset, std::span<std::byte> into) const {
    while (!into.empty()) {
      ssize_t done = ::pread(fd_, into.data(), into.size(), offset);
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) fail("{}: reading failed: {}", path_, std::strerror(errno));
      if (done == 0) fail("{}: it ends after {} bytes, in the middle", path_, offset);
      into = into.subspan(static_cast<size_t>(done));
      offset += done;
    }
  }
  void read(std::span<std::byte> into) {
    read_at(position_, into);
    position_ += static_cast<i64>(into.size());
    sum_.add(into);
  }
  u64 sum() { return sum_.take(); }

 private:
  std::string path_;
  int fd_;
  i64 position_ = 0;
  Checksummer sum_;
};

i64 file_bytes(const Header& h) { return static_cast<i64>(sizeof h) + h.tokens * (4 + h.layers * h.row_bytes) + 8; }

void check_header(const Header& h, const Header& want, const KvCache& cache, i64 size, const std::string& path) {
  if (h.magic != kMagic) fail("{}: it is no saved slot", path);
  if (h.version != kVersion) fail("{}: it has version {}, and this program reads version {}", path, h.version, kVersion);
  if (h.model_id != want.model_id) fail("{}: it was saved with another model", path);
  if (h.cache_type != want.cache_type)
    fail("{}: it was saved with another kind of cache; this server's is {} (--cache-type)", path, name(cache.type()));
  if (h.layers != want.layers || h.row_bytes != want.row_bytes || h.tokens < 0 || h.tokens > size / 4)
    fail("{}: its header is damaged", path);
  if (h.tokens > cache.context())
    fail("{}: it holds {} tokens, more than the context of {}; start with a larger -c", path, h.tokens, cache.context());
  if (size != file_bytes(h)) fail("{}: it has {} bytes instead of {}: it was cut off or damaged", path, size, file_bytes(h));
}

void add_text(Checksummer& sum, std::string_view text) {
  i64 size = static_cast<i64>(text.size());
  sum.add(std::as_bytes(std::span(&size, 1)));
  sum.add(std::as_bytes(std::span(text)));
}

bool is_routed_expert(std::string_view tensor) { return tensor.find("_exps.") != std::string_view::npos; }

}  // namespace

u64 slot_model_id(const Engine& engine) {
  const Gguf& gguf = engine.gguf();
  const EngineOptions& o = engine.options();
  Checksummer sum;
  const std::array<i64, 4> options = {o.exact ? 1 : 0, static_cast<i64>(o.expert_groups.mode), o.expert_groups.groups, o.expert_groups.used};
  sum.add(std::as_bytes(std::span(options)));
  for (const auto& [key, value] : gguf.metadata()) {
    const i64* number = std::get_if<i64>(&value.value);
    const u64* natural = std::get_if<u64>(&value.value);
    const f64* real = std::get_if<f64>(&value.value);
    // Numbers of the architecture: keys of packs and shards come and go.
    if (key.find("deepseek2.") != 0 || (number == nullptr && natural == nullptr && real == nullptr)) continue;
    add_text(sum, key);
    if (number != nullptr) sum.add(std::as_bytes(std::span(number, 1)));
    if (natural != nullptr) sum.add(std::as_bytes(std::span(natural, 1)));
    if (real != nullptr) sum.add(std::as_bytes(std::span(real, 1)));
  }
  std::vector<const GgufTensor*> tensors;
  for (const GgufTensor& tensor : gguf.tensors())
    if (!is_routed_expert(tensor.name)) tensors.push_back(&tensor);
  std::sort(tensors.begin(), tensors.end(), [](const GgufTensor* a, const GgufTensor* b) { return a->name < b->name; });
  std::vector<std::unique_ptr<Input>> files(gguf.files().size());
  std::vector<std::byte> sample;
  for (const GgufTensor* tensor : tensors) {
    size_t file = static_cast<size_t>(tensor->file);
    if (files[file] == nullptr) files[file] = std::make_unique<Input>(gguf.files()[file].path);
    add_text(sum, tensor->name);
    sum.add(bytes_of(std::span(tensor->shape)));
    i64 type = static_cast<i64>(tensor->type);
    sum.add(std::as_bytes(std::span(&type, 1)));
    sample.resize(static_cast<size_t>(std::min(tensor->bytes, kSampleBytes)));
    files[file]->read_at(tensor->offset, sample);
    sum.add(sample);
  }
  return sum.take();
}

i64 save_slot(const std::string& path, u64 model_id, i64 layers, std::span<const i32> tokens, const KvCache& cache) {
  Header header{.cache_type = static_cast<u32>(cache.type()), .model_id = model_id, .layers = layers, .row_bytes = row_bytes(cache),
                .tokens = static_cast<i64>(tokens.size())};
  OutputFile file(path);
  Checksummer sum;
  auto write = [&](std::span<const std::byte> data) {
    sum.add(data);
    file.write(data);
  };
  write(std::as_bytes(std::span(&header, 1)));
  write(bytes_of(tokens));
  for (i64 layer = 0; layer < layers; layer++)
    write({cache.row(LayerId(static_cast<i32>(layer)), 0), static_cast<size_t>(header.tokens * header.row_bytes)});
  u64 total = sum.take();
  file.write(std::as_bytes(std::span(&total, 1)));
  i64 bytes = file.position();
  file.finish(true);
  file.commit();
  return bytes;
}

SlotFileInfo restore_slot(const std::string& path, u64 model_id, i64 layers, i64 vocab, KvCache& cache) {
  Input file(path);
  i64 size = file.size();
  Header header, want{.cache_type = static_cast<u32>(cache.type()), .model_id = model_id, .layers = layers, .row_bytes = row_bytes(cache)};
  if (size < static_cast<i64>(sizeof header)) fail("{}: it is no saved slot, or it was cut off", path);
  file.read(std::as_writable_bytes(std::span(&header, 1)));
  check_header(header, want, cache, size, path);
  cache.truncate(0);
  SlotFileInfo info{.tokens = std::vector<i32>(static_cast<size_t>(header.tokens)), .bytes = size};
  file.read(std::as_writable_bytes(std::span(info.tokens)));
  for (i64 layer = 0; layer < layers; layer++)
    file.read({cache.row(LayerId(static_cast<i32>(layer)), 0), static_cast<size_t>(header.tokens * header.row_bytes)});
  u64 sum = file.sum(), written = 0;
  file.read(std::as_writable_bytes(std::span(&written, 1)));
  bool known = std::all_of(info.tokens.begin(), info.tokens.end(), [&](i32 token) { return token >= 0 && token < vocab; });
  if (sum != written || !known) fail("{}: its checksum is wrong: the file is damaged", path);
  cache.set_length(header.tokens);
  return info;
}

}  // namespace stoker
