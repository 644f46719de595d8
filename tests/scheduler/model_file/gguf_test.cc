// Files as they should not be: each fault has one message, which names the file and the tensor or key.
#include "scheduler/model_file/gguf.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>

#include "kernels/base/error.h"
#include "scheduler/model_file/gguf_writer.h"
#include "tests/scheduler/model_file/raw_gguf.h"
#include "tests/support/temp_folder.h"

using namespace stoker;
using namespace stoker::test;

static constexpr u32 kF32 = 0, kQ4K = 12;

static std::string parse_error(const RawGguf& raw) {
  return error_of([&] { Gguf::parse(raw.bytes(), "m.gguf"); });
}

// The message has all the parts, among them the file.
static void expect(const std::string& message, std::vector<std::string> parts) {
  parts.push_back("m.gguf: ");
  for (const std::string& part : parts) {
    INFO("message: ", message);
    INFO("lacks: ", part);
    CHECK(message.find(part) != std::string::npos);
  }
}

TEST_CASE("a path that is no model file is refused with the reason") {
  TempFolder folder;
  auto open_error = [](const std::string& path) { return error_of([&] { Gguf::open(path); }); };
  expect(open_error(folder.file("m.gguf")), {"no such file"});
  expect(open_error(folder.write("m.gguf", "")), {"empty", "get it again"});
  expect(open_error(folder.write("m.gguf", "PK\x03\x04 some zip file")), {"not a GGUF file", "PK\\x03\\x04"});
  expect(open_error(folder.write("m.gguf", "GG")), {"not a GGUF file (it begins with 'GG')"});
  expect(open_error(folder.write("m.gguf", "version https://git-lfs.github.com/spec/v1\n")),
         {"Git LFS pointer"});
  std::filesystem::remove(folder.file("m.gguf"));
  std::filesystem::create_directory(folder.file("m.gguf"));
  expect(open_error(folder.file("m.gguf")), {"directory", "NAME-00001-of-0000N.gguf"});
  std::filesystem::remove(folder.file("m.gguf"));
  mkfifo(folder.file("m.gguf").c_str(), 0600);
  expect(open_error(folder.file("m.gguf")), {"not a regular file"});
}

TEST_CASE("versions other than 2 and 3 and big-endian files are refused, each by name") {
  CHECK(parse_error(RawGguf().head(0, 0, 2)) == "no error");
  CHECK(parse_error(RawGguf().head(0, 0, 3)) == "no error");
  expect(parse_error(RawGguf().head(0, 0, 1)), {"version 1", "convert the model again"});
  expect(parse_error(RawGguf().head(0, 0, 4)), {"version 4", "versions 2 and 3"});
  expect(parse_error(RawGguf().head(0, 0, 3u << 24)), {"big-endian"});
}

TEST_CASE("counts and lengths that the file cannot hold are refused before anything is allocated") {
  u64 huge = u64{1} << 60;
  expect(parse_error(RawGguf().head(huge, 0)), {std::to_string(huge) + " tensors", "truncated or damaged"});
  expect(parse_error(RawGguf().head(0, huge)), {std::to_string(huge) + " metadata keys"});
  expect(parse_error(RawGguf().head(0, 1).u64v(huge).data(64)),
         {"the name of metadata key number 0", "claims"});
  expect(parse_error(RawGguf().head(0, 1).text("k").u32v(8).u64v(huge).data(64)),
         {"metadata key 'k'", "ends inside"});
  for (u32 element : {0u, 4u, 8u, 12u})
    expect(parse_error(RawGguf().head(0, 1).text("k").u32v(9).u32v(element).u64v(huge).data(64)),
           {"metadata key 'k'", "an array of " + std::to_string(huge)});
}

TEST_CASE("a lying count in a huge file of holes ends at the header limit, quickly") {
  TempFolder folder;
  std::string path =
      folder.write("m.gguf", RawGguf().head(0, 1).text("k").u32v(9).u32v(8).u64v(u64{1} << 33).bytes());
  std::filesystem::resize_file(path, u64{100} << 30);
  auto start = std::chrono::steady_clock::now();
  expect(error_of([&] { Gguf::open(path); }), {"metadata key 'k'"});
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(20));
}

TEST_CASE("values of unknown types, nested arrays and impossible Bools name their key") {
  expect(parse_error(RawGguf().head(0, 1).text("a.b").u32v(13).u64v(0)),
         {"metadata key 'a.b'", "value type 13"});
  expect(parse_error(RawGguf().head(0, 1).text("a.b").u32v(9).u32v(99).u64v(0)), {"'a.b'", "value type 99"});
  expect(parse_error(RawGguf().head(0, 1).text("a.b").u32v(9).u32v(9).u64v(1).data(64)),
         {"'a.b'", "array of arrays"});
  expect(parse_error(RawGguf().head(0, 1).text("a.b").u32v(7).u8v(2)), {"'a.b'", "Bool of value 2"});
  expect(parse_error(RawGguf().head(0, 2).u32_pair("a.b", 1).u32_pair("a.b", 2)),
         {"metadata key 'a.b'", "twice"});
}

TEST_CASE("names in messages cannot write to the terminal") {
  std::string message = parse_error(RawGguf().head(0, 1).text("\x1b[2Jx").u32v(13).u64v(0));
  CHECK(message.find('\x1b') == std::string::npos);
  CHECK(message.find("\\x1b[2Jx") != std::string::npos);
}

TEST_CASE("general.alignment must be a power of two and is used") {
  for (u32 wrong : {0u, 3u, 48u, 1u << 31})
    expect(parse_error(RawGguf().head(0, 1).u32_pair("general.alignment", wrong)),
           {"metadata key 'general.alignment'", "power of two"});
  expect(parse_error(RawGguf().head(0, 1).text("general.alignment").u32v(8).text("32")),
         {"'general.alignment'"});
  RawGguf good =
      RawGguf().head(1, 1).u32_pair("general.alignment", 4096).tensor("t", {4}, kF32, 0).data(16, 4096);
  Gguf gguf = Gguf::parse(good.bytes(), "m.gguf");
  CHECK(gguf.tensor("t").offset == 4096);
  expect(
      parse_error(
          RawGguf().head(1, 1).u32_pair("general.alignment", 4096).tensor("t", {4}, kF32, 32).data(16, 4096)),
      {"tensor 't'", "not a multiple of the alignment 4096"});
}

TEST_CASE("impossible tensors name themselves") {
  auto one = [](std::vector<u64> shape, u32 type, u64 offset) {
    return parse_error(RawGguf().head(1, 0).tensor("blk.0.x", std::move(shape), type, offset).data(1024));
  };
  CHECK(one({256}, kF32, 0) == "no error");
  expect(one({}, kF32, 0), {"tensor 'blk.0.x'", "0 dimensions"});
  expect(one({1, 1, 1, 1, 1}, kF32, 0), {"tensor 'blk.0.x'", "5 dimensions"});
  expect(one({256, 0}, kF32, 0), {"tensor 'blk.0.x'", "dimension 1 of size 0"});
  expect(one({u64{1} << 63}, kF32, 0), {"tensor 'blk.0.x'", "dimension 0"});
  expect(one({u64{1} << 32, u64{1} << 32}, kF32, 0), {"tensor 'blk.0.x'", "dimension 1"});
  expect(one({u64{1} << 62}, kF32, 0), {"tensor 'blk.0.x'", "64 bits"});
  expect(one({256}, 4, 0), {"tensor 'blk.0.x'", "block type is number 4"});
  expect(one({256}, 1000000, 0), {"tensor 'blk.0.x'", "block type is number 1000000"});
  expect(one({128, 2}, kQ4K, 0), {"tensor 'blk.0.x'", "rows of 128", "Q4_K"});
  expect(one({256}, kF32, 16), {"tensor 'blk.0.x'", "offset 16", "alignment 32"});
  expect(one({256}, kF32, 32), {"tensor 'blk.0.x'", "do not fit", "truncated"});
  expect(one({256}, kF32, u64{1} << 63), {"tensor 'blk.0.x'", "truncated or damaged"});
  expect(parse_error(RawGguf().head(2, 0).tensor("t", {8}, kF32, 0).tensor("t", {8}, kF32, 32).data(64)),
         {"tensor 't'", "twice"});
}

TEST_CASE("a header cut at any byte is an error, never a crash") {
  RawGguf raw = RawGguf()
                    .head(2, 3)
                    .u32_pair("a", 1)
                    .text("b")
                    .u32v(9)
                    .u32v(8)
                    .u64v(2)
                    .text("one")
                    .text("two")
                    .text("c")
                    .u32v(8)
                    .text("value")
                    .tensor("t", {8, 2}, kF32, 0)
                    .tensor("u", {256}, kQ4K, 64)
                    .data(64 + 144);
  CHECK(parse_error(raw) == "no error");
  for (size_t bytes = 0; bytes < raw.bytes().size(); bytes++) {
    INFO("cut to ", bytes);
    std::string message =
        error_of([&] { Gguf::parse(std::string_view(raw.bytes()).substr(0, bytes), "m.gguf"); });
    CHECK(message.starts_with("m.gguf: "));
  }
}

TEST_CASE("typed access converts what it can and names the key where it cannot") {
  GgufWriter writer;
  writer.set("int", gguf_i32(-5));
  writer.set("natural", gguf_u32(7));
  writer.set("large", gguf_u64(u64{1} << 63));
  writer.set("real", gguf_f32(0.5f));
  writer.set("yes", gguf_bool(true));
  writer.set("text", gguf_string("hello"));
  writer.set("ints", gguf_i32s({1, -2}));
  writer.set("reals", gguf_f32s({0.25, -2}));
  writer.set("texts", gguf_strings({"a", ""}));
  TempFolder folder;
  Gguf gguf = Gguf::open(writer.write(folder.file("m.gguf"))[0]);
  CHECK(gguf.get_int("int") == -5);
  CHECK(gguf.need_int("natural") == 7);
  CHECK(gguf.get_float("natural") == 7.0);
  CHECK(gguf.need_float("real") == 0.5);
  CHECK(gguf.get_bool("yes") == true);
  CHECK(gguf.need_string("text") == "hello");
  CHECK(gguf.get_ints("ints") == std::vector<i64>{1, -2});
  CHECK(gguf.get_floats("ints") == std::vector<f64>{1, -2});
  CHECK(gguf.get_floats("reals") == std::vector<f64>{0.25, -2});
  CHECK(*gguf.get_strings("texts") == std::vector<std::string>{"a", ""});
  CHECK(!gguf.get_int("absent"));
  CHECK(gguf.get_strings("absent") == nullptr);
  expect(error_of([&] { gguf.need_int("absent"); }), {"metadata key 'absent' is missing"});
  expect(error_of([&] { gguf.get_int("real"); }), {"'real' is of type F32, expected an integer"});
  expect(error_of([&] { gguf.get_int("yes"); }), {"'yes' is of type Bool"});
  expect(error_of([&] { gguf.get_int("large"); }), {"'large'", "too large"});
  expect(error_of([&] { gguf.get_bool("int"); }), {"'int' is of type I32, expected Bool"});
  expect(error_of([&] { gguf.get_string("ints"); }), {"'ints' is of type Array of I32, expected String"});
  expect(error_of([&] { gguf.get_ints("reals"); }), {"'reals'", "Array of integers"});
  expect(error_of([&] { gguf.get_strings("text"); }), {"'text' is of type String"});
  expect(error_of([&] { gguf.tensor("t"); }), {"tensor 't' is missing"});
}

// --- split models
// -------------------------------------------------------------------------------------------------------

// Three shards: one tensor each.
static std::vector<std::string> write_split(const TempFolder& folder, const std::string& name,
                                            int tensors = 3) {
  static const std::vector<f32> data(64, 1.0f);
  GgufWriter writer({.split_bytes = 256});
  writer.set("general.name", gguf_string("split"));
  for (int i = 0; i < tensors; i++)
    writer.add(
        {fmt::format("t{}", i), BlockType::F32, {64}, gguf_from_memory(std::as_bytes(std::span(data)))});
  return writer.write(folder.file(name));
}

static std::string open_error(const std::string& path) {
  return error_of([&] { Gguf::open(path); });
}

static bool has(const std::string& message, const std::string& part) {
  INFO("message: ", message);
  INFO("lacks: ", part);
  CHECK(message.find(part) != std::string::npos);
  return true;
}

TEST_CASE("a split model opens from its first file, each shard with its own data offset") {
  TempFolder folder;
  std::vector<std::string> paths = write_split(folder, "m.gguf");
  REQUIRE(paths.size() == 3);
  CHECK(paths[1] == folder.file("m-00002-of-00003.gguf"));
  Gguf gguf = Gguf::open(paths[0]);
  CHECK(gguf.files().size() == 3);
  CHECK(gguf.need_string("general.name") == "split");
  CHECK(gguf.tensor("t2").file == 2);
  CHECK(gguf.tensor("t0").offset > gguf.tensor("t1").offset);  // the first header is longer
  CHECK(Gguf::open(paths[0]).tensors().size() == 3);
}

TEST_CASE("faults of split models say which file to get or give") {
  TempFolder folder;
  std::vector<std::string> paths = write_split(folder, "m.gguf");
  has(open_error(paths[2]), "part 3 of a model split into 3 files; give the first: " + paths[0]);
  has(error_of([&] { Gguf::parse(read_all(paths[0]), "m"); }), "only be opened from disk");

  std::filesystem::rename(paths[0], folder.file("other.gguf"));
  has(open_error(folder.file("other.gguf")), "rename it to NAME-00001-of-00003.gguf");
  std::filesystem::rename(folder.file("other.gguf"), paths[0]);

  std::filesystem::rename(paths[1], folder.file("kept"));
  has(open_error(paths[0]), "missing: " + paths[1]);
  std::filesystem::copy_file(paths[2], paths[1]);  // the wrong part under that name
  has(open_error(paths[0]), paths[1] + ": expected part 2 of 3");
  std::filesystem::remove(paths[1]);
  std::filesystem::rename(folder.file("kept"), paths[1]);
  CHECK(open_error(paths[0]) == "no error");

  std::filesystem::resize_file(paths[1], std::filesystem::file_size(paths[1]) - 1);
  has(open_error(paths[0]), paths[1] + ": tensor 't1'");
  std::filesystem::resize_file(paths[1], 100);
  has(open_error(paths[0]), paths[1] + ": the file ends inside");
}

TEST_CASE("shards of different models are noticed by their tensors") {
  TempFolder folder;
  std::vector<std::string> three = write_split(folder, "a.gguf");
  // The second file of another model of three files: its tensor is called like the first one's.
  RawGguf twin = RawGguf().head(1, 2).text("split.no").u32v(2).number(u16{1});
  twin.text("split.count").u32v(2).number(u16{3}).tensor("t0", {64}, kF32, 0).data(256);
  folder.write("a-00002-of-00003.gguf", twin.bytes());
  has(open_error(three[0]), "tensor 't0' is in " + three[0] + " as well");
  RawGguf none = RawGguf().head(0, 2).text("split.no").u32v(2).number(u16{1});
  none.text("split.count").u32v(2).number(u16{3});
  folder.write("a-00002-of-00003.gguf", none.bytes());
  has(open_error(three[0]), "hold 2 tensors, but split.tensors.count says 3");
}

TEST_CASE("split.count of 0 or 1 means one file") {
  for (u16 count : {u16{0}, u16{1}}) {
    RawGguf raw =
        RawGguf().head(1, 1).text("split.count").u32v(2).number(count).tensor("t", {8}, kF32, 0).data(32);
    CHECK(Gguf::parse(raw.bytes(), "m.gguf").tensors().size() == 1);
  }
}

TEST_CASE("a header with 130,000 tokens and as many merges is read in well under a second") {
  std::vector<std::string> tokens;
  for (int i = 0; i < 130000; i++) tokens.push_back(fmt::format("token{}", i));
  GgufWriter writer;
  writer.set("tokenizer.ggml.tokens", gguf_strings(tokens));
  writer.set("tokenizer.ggml.merges", gguf_strings(tokens));
  writer.set("tokenizer.ggml.token_type", gguf_i32s(std::vector<i64>(tokens.size(), 1)));
  TempFolder folder;
  std::string path = writer.write(folder.file("m.gguf"))[0];
  auto start = std::chrono::steady_clock::now();
  Gguf gguf = Gguf::open(path);
  auto seconds = std::chrono::duration<f64>(std::chrono::steady_clock::now() - start).count();
  MESSAGE("read in ", seconds, " s");
  CHECK(seconds < 1.0);
  CHECK(*gguf.get_strings("tokenizer.ggml.merges") == tokens);
}
