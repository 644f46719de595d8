#include "tools/serve/stop_strings.h"

#include <algorithm>
#include <utility>

namespace stoker {

size_t held_bytes(const std::string& text, const std::string& word) {
  for (size_t n = std::min(text.size(), word.size() - 1); n > 0; n--)
    if (text.compare(text.size() - n, n, word, 0, n) == 0) return n;
  return 0;
}

std::string StopStrings::push(const std::string& text) {
  if (found()) return {};
  held_ += text;
  size_t first = std::string::npos;
  for (const std::string& word : strings_) {
    size_t at = held_.find(word);
    if (at >= first) continue;
    first = at;
    found_ = word;
  }
  if (found()) return std::exchange(held_, {}).substr(0, first);
  size_t hold = 0;
  for (const std::string& word : strings_) hold = std::max(hold, held_bytes(held_, word));
  std::string shown = held_.substr(0, held_.size() - hold);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopStrings::finish() { return std::exchange(held_, {}); }

}  // namespace stoker
