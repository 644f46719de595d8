#include "kernels/format/codebooks.h"

#include <doctest/doctest.h>

#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <vector>

#include "kernels/format/block_type.h"
#include "kernels/format/blocks.h"
#include "tests/support/shared_data.h"

using namespace stoker;

template <class Book>
static void check_entry(const Book& book, size_t index, const std::vector<int>& values) {
  REQUIRE(index < book.size());
  REQUIRE(values.size() == sizeof book[0]);
  for (size_t j = 0; j < values.size(); j++) REQUIRE(static_cast<i8>(book[index] >> (8 * j)) == values[j]);
}

TEST_CASE("the code books hold what the table of the formats says") {
  std::string path = test::shared_file("data/quants/codebooks.tsv");
  if (path.empty()) return;
  std::ifstream in(path);
  std::map<std::string, size_t> seen;
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("#")) continue;
    std::istringstream fields(line);
    std::string name;
    size_t index;
    fields >> name >> index;
    std::vector<int> values;
    for (int v; fields >> v;) values.push_back(v);
    REQUIRE(index == seen[name]++);
    CAPTURE(name);
    CAPTURE(index);
    if (name == "IQ2_XXS") check_entry(kGridIq2Xxs, index, values);
    if (name == "IQ2_XS") check_entry(kGridIq2Xs, index, values);
    if (name == "IQ2_S") check_entry(kGridIq2S, index, values);
    if (name == "IQ1_S") check_entry(kGridIq1S, index, values);
    if (name == "IQ3_XXS") check_entry(kGridIq3Xxs, index, values);
    if (name == "IQ3_S") check_entry(kGridIq3S, index, values);
    if (name == "IQ4_NL") REQUIRE(std::equal(values.begin(), values.end(), kIq4Nl.begin(), kIq4Nl.end()));
    if (name == "IQ2_SIGNS")
      REQUIRE(std::equal(values.begin(), values.end(), kSignBytes.begin(), kSignBytes.end()));
  }
  CHECK(seen["IQ1_S"] == kGridIq1S.size());
  CHECK(seen["IQ2_S"] == kGridIq2S.size());
  CHECK(seen["IQ2_XS"] == kGridIq2Xs.size());
  CHECK(seen["IQ2_XXS"] == kGridIq2Xxs.size());
  CHECK(seen["IQ3_S"] == kGridIq3S.size());
  CHECK(seen["IQ3_XXS"] == kGridIq3Xxs.size());
}

TEST_CASE("no code book entry occurs twice and all digits are legal") {
  auto check_book = [](const auto& book, const std::set<int>& legal) {
    std::set<u64> distinct(book.begin(), book.end());
    CHECK(distinct.size() == book.size());
    for (auto entry : book)
      for (size_t j = 0; j < sizeof entry; j++) REQUIRE(legal.contains(static_cast<i8>(entry >> (8 * j))));
  };
  check_book(kGridIq2Xxs, {8, 25, 43});
  check_book(kGridIq2Xs, {8, 25, 43});
  check_book(kGridIq2S, {8, 25, 43});
  check_book(kGridIq1S, {-1, 0, 1});
  check_book(kGridIq3Xxs, {4, 12, 20, 28, 36, 44, 52, 62});
  check_book(kGridIq3S, {1, 3, 5, 7, 9, 11, 13, 15});
}

TEST_CASE("the other forms of the code books hold the same entries") {
  auto check_digits = [](const auto& planes, const auto& book, const std::vector<int>& values) {
    for (size_t i = 0; i < book.size(); i++)
      for (size_t j = 0; j < 8; j++)
        REQUIRE(values[planes[j / 4][i] >> (2 * (j % 4)) & 3] == static_cast<i8>(book[i] >> (8 * j)));
  };
  check_digits(kPlanesIq2Xxs, kGridIq2Xxs, {8, 25, 43});
  check_digits(kPlanesIq2Xs, kGridIq2Xs, {8, 25, 43});
  check_digits(kPlanesIq2S, kGridIq2S, {8, 25, 43});
  auto check_weights = [](const auto& planes, const auto& book) {
    for (size_t i = 0; i < book.size(); i++)
      for (size_t j = 0; j < 4; j++) REQUIRE(planes[j][i] == kPlaneBias + (book[i] >> (8 * j) & 255u));
  };
  check_weights(kPlanesIq3Xxs, kGridIq3Xxs);
  check_weights(kPlanesIq3S, kGridIq3S);
  for (size_t i = 0; i < kGridIq1S.size(); i++)
    for (size_t j = 0; j < 8; j++)
      REQUIRE((kEighthsIq1S[i] >> (8 * j) & 255u) == 8u * static_cast<u8>((kGridIq1S[i] >> (8 * j)) + 1));
}

TEST_CASE("a sign byte has an even number of negative weights and keeps its index") {
  for (u32 i = 0; i < 128; i++) {
    CHECK(std::popcount(static_cast<u32>(kSignBytes[i])) % 2 == 0);
    CHECK((kSignBytes[i] & 127) == i);
  }
}

TEST_CASE("sizes of the block types equal the layouts") {
  CHECK(info(BlockType::Q2_K).block_bytes == i64{sizeof(BlockQ2_K)});
  CHECK(info(BlockType::Q3_K).block_bytes == i64{sizeof(BlockQ3_K)});
  CHECK(info(BlockType::Q4_K).block_bytes == i64{sizeof(BlockQ4_K)});
  CHECK(info(BlockType::Q5_K).block_bytes == i64{sizeof(BlockQ5_K)});
  CHECK(info(BlockType::Q6_K).block_bytes == i64{sizeof(BlockQ6_K)});
  CHECK(info(BlockType::IQ1_S).block_bytes == i64{sizeof(BlockIQ1_S)});
  CHECK(info(BlockType::IQ1_M).block_bytes == i64{sizeof(BlockIQ1_M)});
  CHECK(info(BlockType::MXFP4).block_bytes == i64{sizeof(BlockMXFP4)});
  CHECK(find_block_type("iq2_xxs")->block_bytes == i64{sizeof(BlockIQ2_XXS)});
  CHECK(find_block_type("Q9_K") == nullptr);
  CHECK(find_block_type(4) == nullptr);
  CHECK(row_bytes(BlockType::Q4_K, 7168) == 4032);
}
