#include "tests/scheduler/pattern_file.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <vector>

namespace stoker::test {

// Byte i of the pattern is byte i % 8 of a hash of i / 8.
static u64 pattern_word(u64 seed, i64 index) {
  u64 z = (static_cast<u64>(index) + 1) * 0x9e3779b97f4a7c15u + seed;
  z = (z ^ (z >> 29)) * 0xbf58476d1ce4e5b9u;
  return z ^ (z >> 32);
}

void fill_pattern(std::byte* data, u64 seed, i64 offset, i64 bytes) {
  for (i64 at = 0; at < bytes;) {
    u64 word = pattern_word(seed, (offset + at) / 8);
    i64 skip = (offset + at) % 8;
    i64 n = std::min(8 - skip, bytes - at);
    std::memcpy(data + at, reinterpret_cast<const std::byte*>(&word) + skip, static_cast<size_t>(n));
    at += n;
  }
}

bool matches_pattern(const std::byte* data, u64 seed, i64 offset, i64 bytes) {
  std::vector<std::byte> expected(static_cast<size_t>(bytes));
  fill_pattern(expected.data(), seed, offset, bytes);
  return std::memcmp(data, expected.data(), expected.size()) == 0;
}

PatternFile::PatternFile(u64 seed, i64 bytes, const std::string& folder)
    : folder_(folder), path_(folder_.file("pattern")) {
  std::ofstream out(path_, std::ios::binary);
  std::vector<std::byte> block(static_cast<size_t>(kMiB));
  for (i64 at = 0; at < bytes; at += kMiB) {
    i64 n = std::min(kMiB, bytes - at);
    fill_pattern(block.data(), seed, at, n);
    out.write(reinterpret_cast<const char*>(block.data()), n);
  }
  if (!out.flush()) throw std::runtime_error("cannot write " + path_);
}

}  // namespace stoker::test
