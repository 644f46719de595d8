#include "tools/serve/reasoning.h"

#include <algorithm>

#include "tools/serve/stop_strings.h"

namespace stoker {

namespace {

const std::string kOpen = "<think>";
const std::string kClose = "</think>";

size_t leading_space(const std::string& text) { return std::min(text.find_first_not_of(" \r\n\t"), text.size()); }

}  // namespace

Reasoning::Parts Reasoning::push(const std::string& text) {
  Parts out;
  held_ += text;
  advance(out, false);
  return out;
}

Reasoning::Parts Reasoning::finish() {
  Parts out;
  advance(out, true);
  return out;
}

void Reasoning::advance(Parts& out, bool last) {
  if (state_ == State::start) {
    // An answer thinks when <think> is the first thing in it.
    size_t begin = leading_space(held_);
    bool maybe = begin == held_.size() || kOpen.compare(0, held_.size() - begin, held_, begin) == 0;
    if (held_.compare(begin, kOpen.size(), kOpen) == 0) {
      held_.erase(0, begin + kOpen.size());
      state_ = State::thinking;
    } else if (!maybe || last) {
      state_ = State::content;
    }
  }
  if (state_ == State::thinking) {
    if (!said_) held_.erase(0, leading_space(held_));
    size_t end = held_.find(kClose);
    size_t shown = end != std::string::npos ? end : held_.size() - (last ? 0 : held_bytes(held_, kClose));
    out.reasoning = held_.substr(0, shown);
    said_ = said_ || shown > 0;
    held_.erase(0, end != std::string::npos ? end + kClose.size() : shown);
    if (end != std::string::npos) state_ = State::after;
  }
  if (state_ == State::after) {
    held_.erase(0, leading_space(held_));
    if (!held_.empty()) state_ = State::content;
  }
  if (state_ == State::content) {
    out.content = held_;
    held_.clear();
  }
}

}  // namespace stoker
