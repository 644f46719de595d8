#include "scheduler/popularity_file.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <sstream>
#include <vector>

#include "kernels/base/byte_fields.h"
#include "kernels/base/checksum.h"
#include "kernels/base/error.h"
#include "scheduler/model_file/output_file.h"

namespace stoker {

namespace {

constexpr std::string_view kMagic = "STKPOPUL";
constexpr u32 kVersion = 1;
constexpr size_t kHeaderBytes = 32;
constexpr i64 kMostLayers = 4096, kMostExperts = 65536;
constexpr f64 kUnit = 65535;

u64 checksum_of(std::string_view bytes) { return checksum(std::as_bytes(std::span(bytes))); }

[[noreturn]] void damaged(const std::string& path, std::string_view what) {
  fail("{}: {}: the file is damaged; delete it, and a new one is made", path, what);
}

std::string read_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) fail("{}: cannot be read: {}", path, std::strerror(errno));
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

// A wrong name after --popularity must not cost a model.
void check_replaceable(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  char start[8] = {};
  if (!in || !in.read(start, 1)) return;
  in.read(start + 1, sizeof start - 1);
  if (std::string_view(start, sizeof start) != kMagic)
    fail("{}: the file exists and holds no popularity; give another name, or delete it", path);
}

}  // namespace

PopularityFile read_popularity(const std::string& path) {
  std::string bytes = read_bytes(path);
  std::string_view rest(bytes);
  if (!rest.starts_with(kMagic)) fail("{}: holds no popularity of experts (--popularity)", path);
  if (rest.size() < kHeaderBytes + sizeof(u64)) damaged(path, "it ends within its header");
  rest.remove_prefix(kMagic.size());
  u32 version = take<u32>(rest);
  if (version != kVersion) fail("{}: popularity of version {}; this program reads version {}", path, version, kVersion);
  i64 layers = take<u32>(rest), experts = take<u32>(rest);
  take<u32>(rest);
  PopularityFile file{.model = take<u64>(rest), .popularity = {}};
  if (layers < 1 || layers > kMostLayers || experts < 1 || experts > kMostExperts) damaged(path, "its shape makes no sense");
  if (static_cast<i64>(rest.size()) != layers * (4 + 2 * experts) + 8) damaged(path, "its size does not fit its shape");
  std::string_view body = std::string_view(bytes).substr(0, bytes.size() - sizeof(u64));
  std::string_view tail = std::string_view(bytes).substr(body.size());
  if (take<u64>(tail) != checksum_of(body)) damaged(path, "its checksum is wrong");
  file.popularity = Popularity(layers, experts);
  std::vector<f32> uses(static_cast<size_t>(experts));
  for (i64 l = 0; l < layers; l++) {
    f32 tokens = take<f32>(rest);
    if (!std::isfinite(tokens) || tokens < 0) damaged(path, "a number makes no sense");
    for (f32& u : uses) u = static_cast<f32>(take<u16>(rest) / kUnit * static_cast<f64>(tokens));
    file.popularity.set(l, tokens, uses);
  }
  return file;
}

Popularity read_popularity(const std::string& path, u64 model, i64 moe_layers, i64 experts) {
  PopularityFile file = read_popularity(path);
  if (file.model != model || file.popularity.moe_layers() != moe_layers || file.popularity.experts() != experts)
    fail("{}: the popularity of another model's experts ({} layers of {}); give this model a file of its own", path,
         file.popularity.moe_layers(), file.popularity.experts());
  return std::move(file.popularity);
}

void write_popularity(const std::string& path, const PopularityFile& file) {
  const Popularity& p = file.popularity;
  std::string bytes(kMagic);
  put(bytes, kVersion);
  put(bytes, static_cast<u32>(p.moe_layers()));
  put(bytes, static_cast<u32>(p.experts()));
  put(bytes, u32{0});
  put(bytes, file.model);
  for (i64 l = 0; l < p.moe_layers(); l++) {
    put(bytes, p.tokens(l));
    for (i64 e = 0; e < p.experts(); e++) put(bytes, static_cast<u16>(std::lround(p.share(l, e) * kUnit)));
  }
  put(bytes, checksum_of(bytes));
  check_replaceable(path);
  OutputFile out(path);
  out.write(std::as_bytes(std::span(bytes)));
  out.finish(/*durable=*/true);
  out.commit();
}

}  // namespace stoker
