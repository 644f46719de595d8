// Fields of a line of text, as numbers.
#pragma once

#include <charconv>
#include <string_view>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

inline void split_fields(std::string_view line, char separator, std::vector<std::string_view>& fields) {
  fields.clear();
  for (size_t at = 0;;) {
    size_t end = line.find(separator, at);
    fields.push_back(line.substr(at, end == std::string_view::npos ? end : end - at));
    if (end == std::string_view::npos) return;
    at = end + 1;
  }
}

// False unless all of `text` is a number.
template <class Number>
bool parse_field(std::string_view text, Number& number) {
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

}  // namespace stoker
