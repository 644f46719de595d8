#include "scheduler/model_file/pack.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "kernels/base/checksum.h"
#include "kernels/base/error.h"
#include "scheduler/model_file/gguf.h"
#include "scheduler/model_file/pack_check.h"
#include "scheduler/model_file/pack_writer.h"
#include "tests/scheduler/model_file/raw_gguf.h"
#include "tests/support/temp_folder.h"

using namespace stoker;
using namespace stoker::test;

namespace {

constexpr i64 kHidden = 512, kFfn = 256, kExperts = 7;
constexpr ExpertTable::Shape kShape{
    .first_layer = 1, .end_layer = 4, .experts = kExperts, .top_k = 2, .hidden = kHidden, .ffn = kFfn};
constexpr std::array kMatrices = {ExpertMatrix::gate, ExpertMatrix::up, ExpertMatrix::down};

// Every byte tells its tensor and place.
GgufFill numbered(u32 seed) {
  return [seed](i64 at, std::span<std::byte> out) {
    for (std::byte& byte : out) byte = static_cast<std::byte>((static_cast<u64>(at++) * 2654435761u + seed) >> 9);
  };
}

// Three MoE layers of differing types and layouts, a dense one and one for multi-token prediction beside them.
GgufWriter small_model() {
  GgufWriter writer;
  writer.set("general.architecture", gguf_string("deepseek2"));
  writer.set("deepseek2.expert_count", gguf_u32(kExperts));
  u32 seed = 1;
  auto add = [&](std::string name, BlockType type, std::vector<i64> shape) {
    writer.add({std::move(name), type, std::move(shape), numbered(seed++ * 7919)});
  };
  add("token_embd.weight", BlockType::Q8_0, {kHidden, 33});
  add("blk.0.ffn_norm.weight", BlockType::F32, {kHidden});
  constexpr BlockType kTypes[] = {BlockType::Q4_K, BlockType::Q2_K, BlockType::Q8_0, BlockType::Q4_K};
  for (i64 l = 1; l <= 4; l++) {  // the last is not among the shape's layers
    auto name = [&](const char* what) { return fmt::format("blk.{}.ffn_{}_exps.weight", l, what); };
    BlockType type = kTypes[l - 1];
    if (l == 2) {
      add(name("gate_up"), type, {kHidden, 2 * kFfn, kExperts});
    } else {
      add(name("gate"), type, {kHidden, kFfn, kExperts});
      add(name("up"), BlockType::Q6_K, {kHidden, kFfn, kExperts});
    }
    add(name("down"), type, {kFfn, kHidden, kExperts});
    add(fmt::format("blk.{}.ffn_gate_inp.weight", l), BlockType::F32, {kHidden, kExperts});
  }
  return writer;
}

std::string bytes_at(const Gguf& gguf, i32 file, i64 offset, i64 bytes) {
  std::ifstream in(gguf.files()[static_cast<size_t>(file)].path, std::ios::binary);
  in.seekg(offset);
  std::string found(static_cast<size_t>(bytes), '\0');
  in.read(found.data(), bytes);
  CHECK(in.good());
  return found;
}

std::string expert_bytes(const Gguf& gguf, const ExpertTable& table, LayerId layer, ExpertId expert) {
  std::string bytes;
  for (ExpertMatrix m : kMatrices) {
    Extent extent = table.extent(layer, expert, m);
    bytes += bytes_at(gguf, extent.file, extent.offset, extent.bytes);
  }
  return bytes;
}

struct Original {
  TempFolder folder;
  Gguf gguf = Gguf::open(small_model().write(folder.file("model.gguf")).front());
  ExpertTable experts = ExpertTable::from_gguf(gguf, kShape);

  PackOptions options(i64 files) const {
    return {.output = folder.file("pack.gguf"),
            .stripe_folders = std::vector<std::string>(static_cast<size_t>(files - 1), folder.file("."))};
  }
  std::vector<std::string> pack(i64 files) const { return write_pack(gguf, experts, options(files)).paths; }
  std::string pack_error(const PackOptions& options) const {
    return error_of([&] { write_pack(gguf, experts, options); });
  }
};

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

std::string experts_error(const std::string& path, const ExpertTable::Shape& shape = kShape) {
  return error_of([&] { ExpertTable::from_gguf(Gguf::open(path), shape); });
}

void flip_byte(const std::string& path, i64 offset) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(offset);
  int byte = file.get();
  file.seekp(offset);
  file.put(static_cast<char>(byte ^ 4));
}

}  // namespace

TEST_CASE("a pack has every byte of its original, experts in aligned records") {
  for (i64 files : {1, 2, 3, 7}) {
    INFO(files << " files");
    Original original;
    std::vector<std::string> paths = original.pack(files);
    CHECK(static_cast<i64>(paths.size()) == files);
    Gguf pack = Gguf::open(paths[0]);
    CHECK(static_cast<i64>(pack.files().size()) == files);
    ExpertTable table = ExpertTable::from_gguf(pack, kShape);
    REQUIRE(table.moe_layers() == 3);
    std::vector<i64> experts_of_file(static_cast<size_t>(files));
    for (const ExpertLayer& layer : table.layers()) {
      CHECK(table.expert_bytes(layer.layer) == original.experts.expert_bytes(layer.layer));
      for (i64 e = 0; e < kExperts; e++) {
        Extent gate = table.extent(layer.layer, ExpertId(e), ExpertMatrix::gate);
        Extent up = table.extent(layer.layer, ExpertId(e), ExpertMatrix::up);
        CHECK(gate.offset % 4096 == 0);
        CHECK(up.offset == gate.offset + gate.bytes);
        CHECK(up.type == original.experts.extent(layer.layer, ExpertId(e), ExpertMatrix::up).type);
        experts_of_file[static_cast<size_t>(gate.file)]++;
        std::string bytes = expert_bytes(pack, table, layer.layer, ExpertId(e));
        CHECK((bytes == expert_bytes(original.gguf, original.experts, layer.layer, ExpertId(e))));
        CHECK(*table.checksum(layer.layer, ExpertId(e)) == checksum(std::as_bytes(std::span(bytes))));
      }
    }
    auto [least, most] = std::minmax_element(experts_of_file.begin(), experts_of_file.end());
    CHECK(*most - *least <= 2);  // of 21
    i64 plain = 0;
    for (const GgufTensor& t : original.gguf.tensors()) {
      const GgufTensor* same = pack.find_tensor(t.name);
      if (contains(t.name, "_exps.") && !t.name.starts_with("blk.4.")) {
        CHECK(same == nullptr);
        continue;
      }
      REQUIRE(same != nullptr);
      plain++;
      CHECK((bytes_at(original.gguf, t.file, t.offset, t.bytes) ==
             bytes_at(pack, same->file, same->offset, same->bytes)));
    }
    for (const auto& [key, value] : original.gguf.metadata()) CHECK(pack.find(key) != nullptr);
    PackCheck check = check_pack(pack, table, {});
    CHECK(check.experts == 21);
    CHECK(check.tensors == plain);
    CHECK(check.damaged.empty());
  }
}

TEST_CASE("a check finds every damaged expert and tensor, and says where") {
  Original original;
  std::string path = original.pack(2)[0];
  Gguf pack = Gguf::open(path);
  ExpertTable table = ExpertTable::from_gguf(pack, kShape);
  Extent first = table.extent(LayerId(2), ExpertId(4), ExpertMatrix::gate);
  Extent last = table.extent(LayerId(3), ExpertId(6), ExpertMatrix::down);
  const GgufTensor& router = pack.tensor("blk.3.ffn_gate_inp.weight");
  flip_byte(pack.files()[static_cast<size_t>(first.file)].path, first.offset);
  flip_byte(pack.files()[static_cast<size_t>(last.file)].path, last.offset + last.bytes - 1);
  flip_byte(path, router.offset + 100);
  PackCheck check = check_pack(pack, table, {});
  REQUIRE(check.damaged.size() == 3);
  std::string all = fmt::format("{}\n{}\n{}", check.damaged[0], check.damaged[1], check.damaged[2]);
  CHECK(contains(all, "layer 2, expert 4: "));
  CHECK(contains(all, "layer 3, expert 6: "));
  CHECK(contains(all, "tensor 'blk.3.ffn_gate_inp.weight': "));
  CHECK(contains(all, pack.files()[1].path));
}

TEST_CASE("stripes may move, must all be there, and must be of one packing") {
  Original original;
  std::filesystem::create_directory(original.folder.file("other"));
  PackOptions options{.output = original.folder.file("pack.gguf"),
                      .stripe_folders = {original.folder.file("other"), original.folder.file(".")}};
  std::vector<std::string> paths = write_pack(original.gguf, original.experts, options).paths;
  CHECK(std::filesystem::path(paths[1]).filename() == "pack.stripe2of3.gguf");
  CHECK(experts_error(paths[0]) == "no error");

  std::string moved = original.folder.file("pack.stripe2of3.gguf");
  std::filesystem::rename(paths[1], moved);
  CHECK(experts_error(paths[0]) == "no error");
  std::filesystem::rename(moved, original.folder.file("elsewhere"));
  std::string missing = experts_error(paths[0]);
  CHECK(contains(missing, "3 stripes"));
  CHECK(contains(missing, paths[1]));

  std::filesystem::copy_file(paths[2], moved);  // stripe 3 in the place of 2
  CHECK(contains(experts_error(paths[0]), "not stripe 2"));
  options.replace = true;
  std::string old = read_all(paths[2]);
  write_pack(original.gguf, original.experts, options);
  CHECK(experts_error(paths[0]) == "no error");
  original.folder.write("pack.stripe3of3.gguf", old);  // of the first packing
  CHECK(contains(experts_error(paths[0]), "another packing"));

  std::string alone = experts_error(paths[1]);
  CHECK(contains(alone, "stripe 2 of a packed model; give its main file: pack.gguf"));
}

TEST_CASE("nothing is overwritten that was not meant to be") {
  Original original;
  PackOptions options = original.options(2);
  options.output = original.gguf.path();
  options.replace = true;
  CHECK(contains(original.pack_error(options), "overwrite the model itself"));
  std::string link = original.folder.file("link.gguf");
  std::filesystem::create_symlink(original.gguf.path(), link);
  options.output = link;
  CHECK(contains(original.pack_error(options), "overwrite the model itself"));
  // The model under the name that a partial pack has.
  std::filesystem::copy_file(original.gguf.path(), original.folder.file("x.gguf.partial"));
  Gguf partial = Gguf::open(original.folder.file("x.gguf.partial"));
  CHECK(contains(error_of([&] { write_pack(partial, original.experts, {.output = original.folder.file("x.gguf")}); }),
                 "overwrite the model itself"));
  options = original.options(2);
  original.folder.write("pack.stripe2of2.gguf", "mine");
  CHECK(contains(original.pack_error(options), "pack.stripe2of2.gguf: exists already; --force"));
  CHECK(read_all(original.folder.file("pack.stripe2of2.gguf")) == "mine");
  options.stripe_folders = {original.folder.file("absent")};
  CHECK(contains(original.pack_error(options), "absent: no such folder"));
  options.stripe_folders.assign(7, original.folder.file("."));
  CHECK(contains(original.pack_error(options), "8 stripes are too many: 7 at most"));
  std::filesystem::create_directory(original.folder.file("folder"));
  CHECK(contains(original.pack_error({.output = original.folder.file("folder"), .replace = true}), "not a regular file"));
  CHECK(contains(original.pack_error({.output = original.folder.file("no/pack.gguf")}), "cannot create it"));
}

TEST_CASE("a pack cannot be packed") {
  Original original;
  Gguf pack = Gguf::open(original.pack(1)[0]);
  ExpertTable table = ExpertTable::from_gguf(pack, kShape);
  CHECK(contains(error_of([&] { write_pack(pack, table, {.output = original.folder.file("b.gguf")}); }),
                 "packed model already"));
  CHECK(contains(error_of([&] { check_pack(original.gguf, original.experts, {}); }), "not a packed model"));
}

// Stopped at any moment, by an exception, packing leaves no new file; what a kill at that moment would leave is no
// model.
TEST_CASE("a packing that stops leaves nothing that could be taken for a model") {
  struct Stop {};
  for (i64 files : {1, 3}) {
    Original original;
    std::vector<std::string> before = original.folder.names();
    i64 total = 0, calls = 0;
    original.folder.write("keep", "");
    write_pack(original.gguf, original.experts, {.output = original.folder.file("whole.gguf")},
               [&](i64, i64 all) { total = all, calls++; });
    REQUIRE(calls > 10);
    REQUIRE(total > 0);
    std::filesystem::remove(original.folder.file("whole.gguf"));
    std::filesystem::remove(original.folder.file("keep"));
    for (i64 stop_at : {i64{1}, total / 3, total / 2, total}) {
      i64 seen_partials = 0;
      auto progress = [&](i64 done, i64 all) {
        if (done < std::min(stop_at, all)) return;
        for (const std::string& name : original.folder.names()) {
          if (!name.ends_with(".partial")) continue;
          seen_partials++;
          CHECK(error_of([&] { Gguf::open(original.folder.file(name)); }) != "no error");
        }
        throw Stop();
      };
      CHECK_THROWS_AS(write_pack(original.gguf, original.experts, original.options(files), progress), Stop);
      CHECK(seen_partials >= 1);
      CHECK(original.folder.names() == before);
    }
  }
}

// --- files that lie
// -----------------------------------------------------------------------------------------------------

namespace {

// A pack's main file, with one key replaced and tensors as given.
struct Forged {
  std::string key;
  GgufValue value;
  BlockType type = BlockType::I8;
  i64 record_change = 0, records_change = 0;
};

std::string error_of_forged(const Forged& forged) {
  Original original;
  Gguf pack = Gguf::open(original.pack(1)[0]);
  GgufWriter writer({.alignment = 4096});
  for (const auto& [key, value] : pack.metadata())
    if (key != "general.alignment" && key != forged.key) writer.set(key, value);
  if (forged.value.type != GgufValueType::Bool) writer.set(forged.key, forged.value);
  for (const GgufTensor& t : pack.tensors()) {
    GgufTensorSpec spec{.name = t.name, .type = t.type, .shape = t.shape, .fill = {}};
    if (t.name == "blk.2.experts.packed.0") {
      spec.type = forged.type;
      spec.shape[0] += forged.record_change;
      spec.shape[1] += forged.records_change;
    }
    writer.add(spec);
  }
  return experts_error(writer.write(original.folder.file("forged.gguf"))[0]);
}

const GgufValue kLeftOut = gguf_bool(false);

}  // namespace

TEST_CASE("a pack whose header is wrong is refused by key or tensor") {
  CHECK(error_of_forged({.key = "none", .value = gguf_u32(1)}) == "no error");
  for (const char* key : {"layers", "gate_types", "up_types", "down_types", "checksums"}) {
    std::string name = std::string("stoker.pack.") + key;
    CHECK(contains(error_of_forged({.key = name, .value = kLeftOut}), name + "' is missing"));
  }
  CHECK(contains(error_of_forged({.key = "stoker.pack.version", .value = gguf_u32(2)}), "reads version 1"));
  CHECK(contains(error_of_forged({.key = "stoker.pack.layers", .value = gguf_i32s({1, 2})}), "2 values for 3 layers"));
  CHECK(contains(error_of_forged({.key = "stoker.pack.layers", .value = gguf_i32s({1, 2, 4})}), "has layer 4"));
  CHECK(contains(error_of_forged({.key = "stoker.pack.up_types", .value = gguf_i32s({14, 77, 14})}),
                 "'stoker.pack.up_types': block type number 77 of layer 2"));
  CHECK(contains(error_of_forged({.key = "stoker.pack.up_types", .value = gguf_i32s({14, -1, 14})}), "number -1"));
  CHECK(contains(error_of_forged({.key = "stoker.pack.up_types", .value = gguf_i32s({14, 24, 14})}), "number 24"));
  CHECK(contains(error_of_forged({.key = "stoker.pack.up_types", .value = gguf_strings({"a", "b", "c"})}),
                 "'stoker.pack.up_types' is of type"));
  CHECK(contains(error_of_forged({.key = "stoker.pack.checksums", .value = gguf_u64s({1, 2})}),
                 "'stoker.pack.checksums' has 2 values for 3 layers of 7 experts"));
  CHECK(contains(error_of_forged({.key = "stoker.pack.checksums", .value = gguf_i32s({1, 2})}), "array of U64"));
  CHECK(contains(error_of_forged({.key = "none", .value = gguf_u32(1), .record_change = 4096}),
                 "'blk.2.experts.packed.0' must be 7 records of"));
  CHECK(contains(error_of_forged({.key = "none", .value = gguf_u32(1), .records_change = -1}), "must be 7 records"));
  CHECK(contains(error_of_forged({.key = "none", .value = gguf_u32(1), .type = BlockType::F16}), "(I8)"));
  CHECK(contains(error_of_forged({.key = "stoker.pack.stripes", .value = gguf_strings({"../../etc/x"})}), "missing"));
  CHECK(contains(error_of_forged({.key = "stoker.pack.stripes",
                                  .value = gguf_strings(std::vector<std::string>(100, "x"))}),
                 "names 100 files"));
}

TEST_CASE("a shape that does not suit the pack is refused without arithmetic going wrong") {
  Original original;
  std::string path = original.pack(1)[0];
  i64 huge = i64{1} << 61;
  for (auto change : {+[](ExpertTable::Shape& s, i64 n) { s.hidden = n; },
                      +[](ExpertTable::Shape& s, i64 n) { s.ffn = n; },
                      +[](ExpertTable::Shape& s, i64 n) { s.experts = n; }}) {
    for (i64 n : {i64{256 * 3}, huge}) {
      ExpertTable::Shape shape = kShape;
      change(shape, n);
      CHECK(experts_error(path, shape) != "no error");
    }
  }
}

TEST_CASE("bytes without arithmetic are accepted for packed experts only") {
  TempFolder folder;
  GgufWriter writer;
  writer.add({"output.weight", BlockType::I8, {32, 32}, {}});
  CHECK(contains(error_of([&] { Gguf::open(writer.write(folder.file("m.gguf"))[0]); }), "block type is number 24"));
}
