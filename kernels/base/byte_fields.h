// Numbers in the bytes of a file, one behind the other.
#pragma once

#include <cstring>
#include <string>
#include <string_view>

namespace stoker {

// This program runs on little-endian machines only (x86), so memory order is file order.
template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

template <class T>
T take(std::string_view& bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  bytes.remove_prefix(sizeof value);
  return value;
}

}  // namespace stoker
