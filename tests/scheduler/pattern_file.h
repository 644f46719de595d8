// Files whose every byte follows from (seed, offset), so that a test can tell whether the right bytes landed.
#pragma once

#include <string>

#include "kernels/base/types.h"
#include "tests/support/temp_folder.h"

namespace stoker::test {

// What such a file has at [offset, offset + bytes).
void fill_pattern(std::byte* data, u64 seed, i64 offset, i64 bytes);
bool matches_pattern(const std::byte* data, u64 seed, i64 offset, i64 bytes);

// A temporary file of `bytes` pattern bytes, removed with the object.
class PatternFile {
 public:
  PatternFile(u64 seed, i64 bytes, const std::string& folder = "");  // default: the system's temporary folder
  const std::string& path() const { return path_; }

 private:
  TempFolder folder_;
  std::string path_;
};

}  // namespace stoker::test
