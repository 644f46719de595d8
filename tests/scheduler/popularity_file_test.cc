// Popularity and its file: what comes back, and what each damage is told.
#include "scheduler/popularity_file.h"

#include <doctest/doctest.h>

#include <fstream>
#include <sstream>

#include "kernels/base/error.h"
#include "tests/support/temp_folder.h"

using namespace stoker;

namespace {

Popularity some() {
  Popularity p(2, 4);
  for (int token = 0; token < 8; token++) {
    p.add(0, 1, std::vector<i32>{token % 4});
    p.add(1, 1, std::vector<i32>{3});
  }
  return p;
}

std::string bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

std::string error_of(const std::string& path) {
  try {
    read_popularity(path);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("popularity is the share of tokens that want an expert, recent ones counting more") {
  Popularity p = some();
  CHECK(p.share(0, 1) == doctest::Approx(.25).epsilon(.01));
  CHECK(p.share(1, 3) == doctest::Approx(1).epsilon(.01));
  CHECK(p.share(1, 0) == 0);
  Popularity old = p;
  p.add(1, 2 * Popularity::kHalfLifeTokens, {});
  CHECK(p.share(1, 3) < .01);
  CHECK(Popularity(1, 4).share(0, 2) == 0);  // nothing is known
}

TEST_CASE("popularity comes back from its file") {
  test::TempFolder folder;
  std::string path = folder.file("a.popularity");
  write_popularity(path, {42, some()});
  write_popularity(path, {42, some()});  // over its like
  PopularityFile file = read_popularity(path);
  CHECK(file.model == 42);
  for (i64 l = 0; l < 2; l++)
    for (i64 e = 0; e < 4; e++) CHECK(file.popularity.share(l, e) == doctest::Approx(some().share(l, e)).epsilon(1e-4));
  CHECK(file.popularity.tokens(0) == some().tokens(0));
  CHECK(folder.names().size() == 1);
  CHECK_THROWS_WITH_AS(read_popularity(path, 43, 2, 4), doctest::Contains("another model"), Error);
  CHECK_THROWS_WITH_AS(read_popularity(path, 42, 2, 8), doctest::Contains("another model"), Error);
}

TEST_CASE("every cut and every changed byte of a popularity file is noticed") {
  test::TempFolder folder;
  std::string path = folder.file("a.popularity");
  write_popularity(path, {42, some()});
  const std::string good = bytes_of(path);
  for (size_t n = 0; n < good.size(); n++) CHECK(error_of(folder.write("cut", good.substr(0, n))) != "no error");
  for (size_t n = 0; n < good.size(); n++) {
    std::string bad = good;
    bad[n] = static_cast<char>(bad[n] ^ 0x10);
    CHECK(error_of(folder.write("bad", bad)) != "no error");
  }
  CHECK(error_of(folder.write("long", good + "x")).find("does not fit its shape") != std::string::npos);
  CHECK(error_of(folder.file("none")).find("cannot be read") != std::string::npos);
}

TEST_CASE("what is no popularity is not replaced") {
  test::TempFolder folder;
  std::string path = folder.write("model.gguf", "GGUF, a model of many days");
  CHECK_THROWS_WITH_AS(write_popularity(path, {1, some()}), doctest::Contains("give another name"), Error);
  CHECK(bytes_of(path) == "GGUF, a model of many days");
}
