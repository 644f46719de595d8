#include "scheduler/model_file/pack_writer.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <random>
#include <set>

#include "kernels/base/check.h"
#include "kernels/base/checksum.h"
#include "kernels/base/error.h"
#include "scheduler/model_file/gguf.h"
#include "scheduler/model_file/model_bytes.h"
#include "scheduler/model_file/pack.h"

namespace stoker {

namespace fs = std::filesystem;

namespace {

// Two packings of one model get different ids: their stripes must not be mixed, for the experts may be spread or
// quantised otherwise.
std::string new_id() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random());
}

class PackJob {
 public:
  PackJob(const Gguf& model, const ExpertTable& experts, const PackOptions& options)
      : model_(model), experts_(experts), options_(options), bytes_(model) {
    if (is_pack(model)) fail("{}: this is a packed model already", model.path());
    stripes_ = 1 + static_cast<i64>(options.stripe_folders.size());
    if (stripes_ > kPackStripes || stripes_ > experts.experts_per_layer())
      fail("{} stripes are too many: {} at most for this model", stripes_,
           std::min(kPackStripes, experts.experts_per_layer()));
    choose_paths();
    check_paths();
    checksums_.resize(static_cast<size_t>(experts.moe_layers() * experts.experts_per_layer()));
  }

  PackResult run(const GgufWriter::Progress& progress) {
    std::vector<GgufWriter> writers;
    for (i64 s = stripes_ - 1; s > 0; s--) writers.push_back(stripe_writer(s));
    writers.push_back(main_writer());  // last: it has all checksums
    check_space(writers);

    PackResult result;
    for (const GgufWriter& writer : writers) result.written_bytes += writer.data_bytes();
    std::vector<OutputFile> files;
    i64 before = 0;
    for (size_t i = 0; i < writers.size(); i++) {
      const std::string& path = paths_[writers.size() - 1 - i];
      auto report = [&](i64 done, i64) {
        if (progress) progress(before + done, result.written_bytes);
      };
      for (OutputFile& file : writers[i].prepare(path, report)) files.push_back(std::move(file));
      before += writers[i].data_bytes();
    }
    for (OutputFile& file : files) file.commit();

    result.paths = paths_;
    result.experts = experts_.moe_layers() * experts_.experts_per_layer();
    result.expert_bytes = experts_.total_bytes();
    for (const GgufTensor* tensor : plain_) result.tensor_bytes += tensor->bytes;
    return result;
  }

 private:
  void choose_paths() {
    paths_.push_back(options_.output);
    for (i64 s = 1; s < stripes_; s++) {
      const std::string& folder = options_.stripe_folders[static_cast<size_t>(s - 1)];
      if (!fs::is_directory(folder)) fail("--stripe: {}: no such folder", folder);
      paths_.push_back(fs::path(folder) / stripe_file_name(options_.output, s, stripes_));
    }
  }

  void check_paths() const {
    for (const std::string& path : paths_) {
      std::error_code ignored;
      for (const GgufFileInfo& input : model_.files())
        for (const std::string& written : {path, path + ".partial"})
          if (fs::equivalent(written, input.path, ignored))
            fail("{}: packing would overwrite the model itself ({}); choose another name", written, input.path);
      if (!fs::exists(path, ignored)) continue;
      if (!fs::is_regular_file(path, ignored)) fail("{}: not a regular file; choose another name", path);
      if (!options_.replace) fail("{}: exists already; --force replaces it", path);
    }
  }

  // All files of one file system together.
  void check_space(const std::vector<GgufWriter>& writers) const {
    struct Need {
      i64 bytes = 0, free = 0;
      std::string path;
    };
    std::map<dev_t, Need> needs;
    for (size_t i = 0; i < writers.size(); i++) {
      const std::string& path = paths_[writers.size() - 1 - i];
      fs::path folder = fs::path(path).parent_path();
      struct stat info {};
      if (stat(folder.empty() ? "." : folder.c_str(), &info) != 0)
        fail("{}: cannot create it: {}", path, std::strerror(errno));
      Need& need = needs[info.st_dev];
      need.bytes += writers[i].data_bytes();
      need.free = free_bytes_at(path);
      need.path = path;
    }
    for (const auto& [device, need] : needs)
      if (need.free >= 0 && need.bytes > need.free)
        fail("{}: the disk is too full: the pack needs {:.2f} GB there and {:.2f} GB are free", need.path,
             static_cast<f64>(need.bytes) * 1e-9, static_cast<f64>(need.free) * 1e-9);
  }

  GgufWriter stripe_writer(i64 stripe) {
    GgufWriter writer({.alignment = kPackAlignment, .durable = true});
    writer.set("general.architecture", gguf_string("stoker-pack-stripe"));
    writer.set("stoker.pack.version", gguf_u32(kPackVersion));
    writer.set("stoker.pack.id", gguf_string(id_));
    writer.set("stoker.pack.stripe", gguf_u32(static_cast<u32>(stripe)));
    writer.set("stoker.pack.main", gguf_string(fs::path(paths_[0]).filename()));
    add_records(writer, stripe);
    return writer;
  }

  GgufWriter main_writer() {
    GgufWriter writer({.alignment = kPackAlignment, .durable = true});
    for (const auto& [key, value] : model_.metadata())
      if (key != "general.alignment" && !key.starts_with("split.")) writer.set(key, value);
    add_plain_tensors(writer);
    add_records(writer, 0);
    set_keys(writer);
    return writer;
  }

  void set_keys(GgufWriter& writer) {
    std::vector<i64> layers;
    std::array<std::vector<i64>, kExpertMatrices> types;
    for (const ExpertLayer& layer : experts_.layers()) {
      layers.push_back(layer.layer.value);
      for (size_t m = 0; m < types.size(); m++) types[m].push_back(static_cast<i64>(layer.base[m].type));
    }
    writer.set("stoker.pack.version", gguf_u32(kPackVersion));
    writer.set("stoker.pack.layers", gguf_i32s(layers));
    writer.set("stoker.pack.gate_types", gguf_i32s(types[0]));
    writer.set("stoker.pack.up_types", gguf_i32s(types[1]));
    writer.set("stoker.pack.down_types", gguf_i32s(types[2]));
    if (stripes_ > 1) {
      writer.set("stoker.pack.id", gguf_string(id_));
      writer.set("stoker.pack.stripes", gguf_strings(recorded_stripes()));
    }
    writer.set_at_the_end("stoker.pack.checksums", gguf_u64s(checksums_), [this] { return gguf_u64s(checksums_); });
    writer.set_at_the_end("stoker.pack.tensor_checksums", gguf_u64s(plain_checksums_),
                          [this] { return gguf_u64s(plain_checksums_); });
  }

  // Stripes beside the main file move with it; the others are found where they are.
  std::vector<std::string> recorded_stripes() const {
    std::vector<std::string> recorded;
    fs::path home = fs::absolute(paths_[0]).parent_path();
    for (size_t s = 1; s < paths_.size(); s++) {
      fs::path path = fs::absolute(paths_[s]);
      std::error_code ignored;
      bool beside = fs::equivalent(path.parent_path(), home, ignored);
      recorded.push_back(beside ? path.filename() : path.lexically_normal());
    }
    return recorded;
  }

  void add_plain_tensors(GgufWriter& writer) {
    std::set<std::string> packed;
    for (const ExpertLayer& layer : experts_.layers())
      for (const char* name : {"gate", "up", "down", "gate_up"})
        packed.insert(fmt::format("blk.{}.ffn_{}_exps.weight", layer.layer.value, name));
    for (const GgufTensor& tensor : model_.tensors())
      if (!packed.contains(tensor.name)) plain_.push_back(&tensor);
    plain_checksums_.resize(plain_.size());
    for (size_t i = 0; i < plain_.size(); i++) {
      const GgufTensor& tensor = *plain_[i];
      auto fill = [this, &tensor, i](i64 at, std::span<std::byte> out) {
        bytes_.read(tensor.file, tensor.offset + at, out);
        checksummer_.add(out);
        if (at + static_cast<i64>(out.size()) == tensor.bytes) plain_checksums_[i] = checksummer_.take();
      };
      writer.add({.name = tensor.name, .type = tensor.type, .shape = tensor.shape, .fill = fill});
    }
  }

  void add_records(GgufWriter& writer, i64 stripe) {
    for (i64 l = 0; l < experts_.moe_layers(); l++) {
      LayerId layer = experts_.layers()[static_cast<size_t>(l)].layer;
      i64 record = round_up(experts_.expert_bytes(layer), kPackAlignment);
      i64 records = stripe_records(l, experts_.experts_per_layer(), stripe, stripes_);
      std::vector<ExpertId> ids;
      for (i64 e = 0; e < experts_.experts_per_layer(); e++)
        if (stripe_place(l, ExpertId(e), stripes_).stripe == stripe) ids.push_back(ExpertId(e));
      CHECK(static_cast<i64>(ids.size()) == records);
      auto fill = [this, l, layer, record, ids](i64 at, std::span<std::byte> out) {
        while (!out.empty()) {
          size_t n = std::min(out.size(), static_cast<size_t>(record - at % record));
          fill_record(l, layer, ids[static_cast<size_t>(at / record)], at % record, out.first(n));
          out = out.subspan(n);
          at += static_cast<i64>(n);
        }
      };
      writer.add({.name = packed_tensor_name(layer, stripe),
                  .type = BlockType::I8,
                  .shape = {record, records},
                  .fill = fill});
    }
  }

  // Bytes of one record from `at` on: the three matrices, then zeros.
  void fill_record(i64 moe_layer, LayerId layer, ExpertId expert, i64 at, std::span<std::byte> out) {
    i64 begin = 0;
    for (i64 m = 0; m < kExpertMatrices && !out.empty(); m++) {
      Extent extent = experts_.extent(layer, expert, static_cast<ExpertMatrix>(m));
      i64 inside = at - begin;
      begin += extent.bytes;
      if (inside >= extent.bytes) continue;
      size_t n = std::min(out.size(), static_cast<size_t>(extent.bytes - inside));
      bytes_.read(extent.file, extent.offset + inside, out.first(n));
      checksummer_.add(out.first(n));
      out = out.subspan(n);
      at += static_cast<i64>(n);
      if (m == kExpertMatrices - 1 && at == begin)
        checksums_[static_cast<size_t>(moe_layer * experts_.experts_per_layer() + expert.value)] =
            checksummer_.take();
    }
    std::memset(out.data(), 0, out.size());
  }

  const Gguf& model_;
  const ExpertTable& experts_;
  const PackOptions& options_;
  ModelBytes bytes_;
  i64 stripes_ = 1;
  std::string id_ = new_id();
  std::vector<std::string> paths_;  // of the stripes
  std::vector<const GgufTensor*> plain_;
  Checksummer checksummer_;  // of the tensor or expert that is being written
  std::vector<u64> checksums_, plain_checksums_;
};

}  // namespace

PackResult write_pack(const Gguf& model, const ExpertTable& experts, const PackOptions& options,
                      const GgufWriter::Progress& progress) {
  return PackJob(model, experts, options).run(progress);
}

}  // namespace stoker
