// Every format decodes to known values: a few blocks that are part of the repository, and twelve rows per
// format (scales from 1e-3 to 7, outliers, zeros) from the shared reference data.
#include <doctest/doctest.h>

#include <bit>
#include <cstring>
#include <fstream>
#include <sstream>
#include <vector>

#include "kernels/cpu/leaf.h"
#include "tests/support/canary.h"
#include "tests/support/shared_data.h"

using namespace stoker;
using namespace stoker::test;

static std::vector<IsaLevel> levels() {
  std::vector<IsaLevel> result = {IsaLevel::ref};
  for (IsaLevel level : {IsaLevel::avx2, IsaLevel::avx512})
    if (level <= best_isa_level()) result.push_back(level);
  return result;
}

// The same number; zeros may differ in sign.
static bool same(f32 a, f32 b) { return a == b || std::bit_cast<u32>(a) == std::bit_cast<u32>(b); }

static void check_decoded(IsaLevel level, const BlockTypeInfo& type, const std::vector<u8>& blocks,
                          const std::vector<f32>& expected) {
  CAPTURE(std::string(type.name));
  CAPTURE(std::string(name(level)));
  auto decode = leaf_table(level).dequantize[static_cast<i64>(type.type)];
  REQUIRE((decode != nullptr));
  i64 count = static_cast<i64>(expected.size());
  CanaryBuffer<f32> got(count);
  for (i64 i = 0; i < count; i++) got.expect_write(i);
  decode(blocks.data(), got.data(), count);
  CHECK(got.first_damaged() == CanaryBuffer<f32>::kNone);
  i64 wrong = 0, first_wrong = -1;
  for (i64 i = 0; i < count; i++)
    if (!same(got.data()[i], expected[static_cast<size_t>(i)]) && wrong++ == 0) first_wrong = i;
  CAPTURE(first_wrong);
  CHECK(wrong == 0);
}

static const BlockTypeInfo& type_named(const std::string& name) {
  const BlockTypeInfo* type = find_block_type(name);
  REQUIRE((type != nullptr));
  return *type;
}

TEST_CASE("the committed blocks of all formats decode to their values") {
  std::ifstream in(source_file("tests/kernels/ref/decoded_blocks.txt"));
  i64 lines = 0;
  std::vector<bool> seen(kBlockTypeLimit);
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("#")) continue;
    std::istringstream fields(line);
    std::string type_name, hex;
    fields >> type_name >> hex;
    std::vector<u8> blocks;
    for (size_t i = 0; i + 1 < hex.size(); i += 2)
      blocks.push_back(static_cast<u8>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    std::vector<f32> expected;
    for (std::string value; fields >> value;) expected.push_back(std::stof(value));
    const BlockTypeInfo& type = type_named(type_name);
    REQUIRE(row_bytes(type.type, static_cast<i64>(expected.size())) == static_cast<i64>(blocks.size()));
    for (IsaLevel level : levels()) check_decoded(level, type, blocks, expected);
    seen[static_cast<size_t>(type.type)] = true;
    lines++;
  }
  CHECK(lines > 0);
  for (const BlockTypeInfo& type : all_block_types())
    if (type.type != BlockType::F32)
      CHECK_MESSAGE(seen[static_cast<size_t>(type.type)], std::string(type.name));
}

template <class T>
static std::vector<T> read_all(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  std::vector<T> data(static_cast<size_t>(in.tellg()) / sizeof(T));
  in.seekg(0);
  in.read(reinterpret_cast<char*>(data.data()), static_cast<std::streamsize>(data.size() * sizeof(T)));
  return data;
}

TEST_CASE("the reference rows of all formats decode exactly") {
  if (shared_file("data/quants/manifest.tsv").empty()) return;
  i64 formats = 0;
  for (const BlockTypeInfo& type : all_block_types()) {
    if (type.type == BlockType::F32) continue;
    std::string path = shared_file("data/quants/" + std::string(type.name) + ".blocks");
    REQUIRE(!path.empty());
    std::vector<u8> blocks = read_all<u8>(path);
    std::vector<f32> expected = read_all<f32>(path.substr(0, path.size() - 6) + "f32");
    REQUIRE(expected.size() == 12 * 1024);
    for (IsaLevel level : levels()) check_decoded(level, type, blocks, expected);
    formats++;
  }
  CHECK(formats == 22);
}
