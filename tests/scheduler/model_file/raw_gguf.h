// GGUF bytes made by hand, so that they can be wrong in ways the writer does not allow.
#pragma once

#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/types.h"

namespace stoker::test {

// Builds a header piece by piece: RawGguf().u32(..).text(..). Numbers are little-endian.
class RawGguf {
 public:
  template <class T>
  RawGguf& number(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  RawGguf& u8v(u8 value) { return number(value); }
  RawGguf& u32v(u32 value) { return number(value); }
  RawGguf& u64v(u64 value) { return number(value); }
  RawGguf& text(std::string_view value) {
    u64v(value.size());
    bytes_ += value;
    return *this;
  }
  RawGguf& raw(std::string_view value) {
    bytes_ += value;
    return *this;
  }
  RawGguf& head(u64 tensors, u64 pairs, u32 version = 3) {
    return raw("GGUF").u32v(version).u64v(tensors).u64v(pairs);
  }
  RawGguf& u32_pair(std::string_view key, u32 value) { return text(key).u32v(4).u32v(value); }
  RawGguf& tensor(std::string_view name, std::vector<u64> shape, u32 type, u64 offset) {
    text(name).u32v(static_cast<u32>(shape.size()));
    for (u64 size : shape) u64v(size);
    return u32v(type).u64v(offset);
  }
  RawGguf& data(i64 bytes, i64 alignment = 32) {
    bytes_.resize(static_cast<size_t>(round_up(static_cast<i64>(bytes_.size()), alignment) + bytes), '\0');
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

inline std::string read_all(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// The message of the Error that `action` throws; "no error" when it throws none.
template <class Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace stoker::test
