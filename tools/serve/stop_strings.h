// StopStrings: lets text pass until one of some strings appears in it, across the borders of its pieces. What may be
// the beginning of one is held back. One owner.
#pragma once

#include <string>
#include <vector>

namespace stoker {

class StopStrings {
 public:
  explicit StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {}

  // The text that can be shown now. Nothing more comes once a string was found.
  std::string push(const std::string& text);
  std::string finish();  // the end of the text: what was held back

  bool found() const { return !found_.empty(); }
  const std::string& which() const { return found_; }

 private:
  std::vector<std::string> strings_;
  std::string held_;
  std::string found_;
};

// Bytes at the end of `text` that are a beginning, shorter than all, of `word`.
size_t held_bytes(const std::string& text, const std::string& word);

}  // namespace stoker
