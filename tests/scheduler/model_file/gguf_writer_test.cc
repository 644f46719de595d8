#include "scheduler/model_file/gguf_writer.h"

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/base/rng.h"
#include "tests/scheduler/model_file/raw_gguf.h"
#include "tests/support/shared_data.h"
#include "tests/support/temp_folder.h"

using namespace stoker;
using namespace stoker::test;

static std::string tensor_bytes(const Gguf& gguf, const GgufTensor& tensor) {
  std::ifstream in(gguf.files()[static_cast<size_t>(tensor.file)].path, std::ios::binary);
  in.seekg(tensor.offset);
  std::string bytes(static_cast<size_t>(tensor.bytes), '\0');
  in.read(bytes.data(), tensor.bytes);
  CHECK(in.good());
  return bytes;
}

static std::string random_bytes(i64 bytes, u64 seed) {
  Rng rng(seed);
  std::string out(static_cast<size_t>(bytes), '\0');
  for (char& c : out) c = static_cast<char>(rng.next());
  return out;
}

static GgufFill fill_of(const std::string& bytes) {
  return gguf_from_memory(std::as_bytes(std::span(bytes)));
}

static bool equal(const GgufValue& a, const GgufValue& b) {
  bool same_element = a.type != GgufValueType::Array || a.element == b.element;
  return a.type == b.type && same_element && a.value == b.value;
}

static std::vector<std::pair<std::string, GgufValue>> all_values() {
  using T = GgufValueType;
  auto array = [](T element, auto value) { return GgufValue{T::Array, element, value}; };
  return {{"u8", {T::U8, {}, u64{255}}},
          {"i8", {T::I8, {}, i64{-128}}},
          {"u16", {T::U16, {}, u64{65535}}},
          {"i16", {T::I16, {}, i64{-32768}}},
          {"u32", {T::U32, {}, u64{4294967295}}},
          {"i32", {T::I32, {}, i64{-2147483648}}},
          {"f32", {T::F32, {}, f64{0.1f}}},
          {"bool", {T::Bool, {}, i64{1}}},
          {"string", gguf_string("a \0 b\xff")},
          {"u64", {T::U64, {}, ~u64{0}}},
          {"i64", {T::I64, {}, i64{1} << 62}},
          {"f64", {T::F64, {}, 0.1}},
          {"u8s", array(T::U8, std::vector<u64>{0, 255})},
          {"i8s", array(T::I8, std::vector<i64>{-1, 1})},
          {"u16s", array(T::U16, std::vector<u64>{1, 2})},
          {"i16s", array(T::I16, std::vector<i64>{-1, 2})},
          {"u32s", array(T::U32, std::vector<u64>{1, 2})},
          {"i32s", gguf_i32s({-7, 7})},
          {"f32s", gguf_f32s({0.5, -0.25})},
          {"bools", array(T::Bool, std::vector<i64>{0, 1, 1})},
          {"strings", gguf_strings({"", "x", std::string(70000, 'y')})},
          {"u64s", array(T::U64, std::vector<u64>{~u64{0}})},
          {"i64s", array(T::I64, std::vector<i64>{-1})},
          {"f64s", array(T::F64, std::vector<f64>{0.1})},
          {"none", gguf_strings({})}};
}

TEST_CASE("every value type survives a round trip, in versions 2 and 3") {
  TempFolder folder;
  for (u32 version : {2u, 3u}) {
    GgufWriter writer({.version = version});
    for (const auto& [key, value] : all_values()) writer.set(key, value);
    writer.set("string", gguf_string("replaced"));
    Gguf gguf = Gguf::open(writer.write(folder.file("m.gguf"))[0]);
    auto expected = all_values();
    expected[8].second = gguf_string("replaced");
    REQUIRE(gguf.metadata().size() == expected.size());
    for (size_t i = 0; i < expected.size(); i++) {
      INFO("key ", expected[i].first);
      CHECK(gguf.metadata()[i].first == expected[i].first);
      CHECK(equal(gguf.metadata()[i].second, expected[i].second));
    }
  }
}

TEST_CASE("tensors of every block type keep name, shape and bytes, whatever the alignment and the split") {
  TempFolder folder;
  for (i64 alignment : {i64{8}, i64{32}, i64{4096}})
    for (i64 split : {i64{0}, 20 * kKiB}) {
      GgufWriter writer({.alignment = alignment, .split_bytes = split});
      std::vector<std::string> data;
      for (const BlockTypeInfo& type : all_block_types())
        data.push_back(random_bytes(row_bytes(type.type, 256) * 15, static_cast<u64>(type.type)));
      size_t i = 0;
      for (const BlockTypeInfo& type : all_block_types())
        writer.add({"t." + std::string(type.name), type.type, {256, 5, 3}, fill_of(data[i++])});
      std::vector<std::string> paths = writer.write(folder.file("m.gguf"));
      CHECK((paths.size() > 1) == (split > 0));
      Gguf gguf = Gguf::open(paths[0]);
      REQUIRE(gguf.tensors().size() == data.size());
      i = 0;
      for (const BlockTypeInfo& type : all_block_types()) {
        const GgufTensor& tensor = gguf.tensors()[i];
        CHECK(tensor.name == "t." + std::string(type.name));
        CHECK(tensor.type == type.type);
        CHECK(tensor.shape == std::vector<i64>{256, 5, 3});
        CHECK(tensor.offset % alignment == 0);
        CHECK(tensor_bytes(gguf, tensor) == data[i++]);
      }
    }
}

TEST_CASE("tensors larger than one write arrive whole, and progress ends at the total") {
  TempFolder folder;
  std::string large = random_bytes(40 * kMiB + 12, 1), small = random_bytes(400, 2);
  GgufWriter writer;
  writer.add({"small", BlockType::F32, {100}, fill_of(small)});
  writer.add({"large", BlockType::F32, {10 * kMiB + 3}, fill_of(large)});
  writer.add({"last", BlockType::F32, {100}, fill_of(small)});
  i64 done = 0, total = 0;
  std::string path = writer.write(folder.file("m.gguf"), [&](i64 d, i64 t) {
    CHECK(d > done);
    done = d;
    total = t;
  })[0];
  CHECK(total == writer.data_bytes());
  CHECK(done == total);
  Gguf gguf = Gguf::open(path);
  CHECK((tensor_bytes(gguf, gguf.tensor("large")) == large));
  CHECK(tensor_bytes(gguf, gguf.tensor("last")) == small);
}

TEST_CASE("tensors without a source are holes that take no disk space and read as zeros") {
  TempFolder folder;
  std::string some = random_bytes(4096, 3), large = random_bytes(20 * kMiB + 4, 4);
  GgufWriter writer;
  writer.add({"a", BlockType::F32, {1024}, fill_of(some)});
  writer.add({"hole", BlockType::Q4_K, {7168, 2048, 256}, {}});
  writer.add({"b", BlockType::F32, {1024}, fill_of(some)});
  writer.add({"large", BlockType::F32, {5 * kMiB + 1}, fill_of(large)});
  writer.add({"end", BlockType::Q8_0, {1024, 1024}, {}});
  Gguf gguf = Gguf::open(writer.write(folder.file("m.gguf"))[0]);
  CHECK(tensor_bytes(gguf, gguf.tensor("b")) == some);
  CHECK((tensor_bytes(gguf, gguf.tensor("large")) == large));
  CHECK(tensor_bytes(gguf, gguf.tensor("end")) == std::string(1088 * 1024, '\0'));
  CHECK(gguf.files()[0].bytes > 2000 * kMiB);
  struct stat info {};
  REQUIRE(stat(gguf.path().c_str(), &info) == 0);
  CHECK(info.st_blocks * 512 < 22 * kMiB);
}

TEST_CASE("impossible tensors are refused by the writer as well") {
  GgufWriter writer;
  writer.add({"t", BlockType::F32, {8}, {}});
  auto adding = [&](GgufTensorSpec spec) { return error_of([&] { writer.add(std::move(spec)); }); };
  CHECK(adding({"t", BlockType::F32, {8}, {}}) == "two tensors are named 't'");
  CHECK(adding({"u", BlockType::Q4_K, {128, 4}, {}}).find("'u': rows of 128 weights") != std::string::npos);
  CHECK(adding({"u", BlockType::F32, {}, {}}).find("0 dimensions") != std::string::npos);
  CHECK(adding({"u", BlockType::F32, {4, 0}, {}}).find("size 0") != std::string::npos);
  CHECK(adding({"u", BlockType::F32, {i64{1} << 62, 2}, {}}).find("impossible") != std::string::npos);
}

TEST_CASE("a failed write leaves neither the file nor a part of it, and what was there stays") {
  TempFolder folder;
  std::string old_path = folder.write("m.gguf", "old");
  GgufWriter writer;
  writer.add({"t", BlockType::F32, {kMiB}, [](i64, std::span<std::byte>) { fail("the source broke"); }});
  CHECK(error_of([&] { writer.write(old_path); }) == "the source broke");
  CHECK(folder.names() == std::vector<std::string>{"m.gguf"});
  CHECK(read_all(old_path) == "old");
  CHECK(error_of([&] { writer.write(folder.file("no/such/m.gguf")); }).find("cannot create") !=
        std::string::npos);
}

TEST_CASE("a write that the system refuses half-way is an error that says how far it came") {
  TempFolder folder;
  std::string data = random_bytes(4 * kMiB, 4);
  GgufWriter writer({.split_bytes = 3 * kMiB});
  for (int i = 0; i < 10; i++) writer.add({std::to_string(i), BlockType::F32, {kMiB}, fill_of(data)});
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit tight = before;
  tight.rlim_cur = 2 * kMiB;
  setrlimit(RLIMIT_FSIZE, &tight);
  std::string message = error_of([&] { writer.write(folder.file("m.gguf")); });
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old_handler);
  INFO(message);
  CHECK(message.find("m-00001-of-00010.gguf") != std::string::npos);
  CHECK(message.find("after 2 MiB") != std::string::npos);
  CHECK(folder.names().empty());
}

TEST_CASE("more data than the disk has room for is refused before anything is written") {
  TempFolder folder;
  GgufWriter writer;
  writer.add({"t", BlockType::F32, {kGiB, 1000, 1000}, [](i64, std::span<std::byte>) {
                fail("must not be asked");
              }});
  CHECK(error_of([&] { writer.write(folder.file("m.gguf")); }).find("the disk is too full") !=
        std::string::npos);
  CHECK(folder.names().empty());
}

TEST_CASE("a model read and written again is the same file") {
  std::string path = shared_file("models/v3-mixed.gguf");
  if (path.empty()) return;
  Gguf gguf = Gguf::open(path);
  std::string whole = read_all(path);
  GgufWriter writer;
  for (const auto& [key, value] : gguf.metadata()) writer.set(key, value);
  for (const GgufTensor& t : gguf.tensors())
    writer.add({t.name, t.type, t.shape,
                gguf_from_memory(std::as_bytes(std::span(whole))
                                     .subspan(static_cast<size_t>(t.offset), static_cast<size_t>(t.bytes)))});
  TempFolder folder;
  CHECK((read_all(writer.write(folder.file("copy.gguf"))[0]) == whole));
}
