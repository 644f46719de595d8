#include "tools/serve/tool_calls.h"

#include <fmt/format.h>

#include <utility>

#include "tools/serve/stop_strings.h"

namespace stoker {

ToolCalls::Parts ToolCalls::push(const std::string& text) {
  Parts out;
  if (markup_ == nullptr) {
    out.content = text;
    return out;
  }
  held_ += text;
  while (advance(out, false)) {
  }
  return out;
}

ToolCalls::Parts ToolCalls::finish() {
  Parts out;
  if (markup_ == nullptr) return out;
  while (advance(out, true)) {
  }
  return out;
}

// One step; false: nothing more can be said of what is held.
bool ToolCalls::advance(Parts& out, bool last) {
  const ToolMarkup& m = *markup_;
  switch (state_) {
    case State::content: {
      std::string begin(m.calls_begin);
      size_t at = held_.find(begin);
      size_t shown = at != std::string::npos ? at : held_.size() - (last ? 0 : held_bytes(held_, begin));
      out.content += held_.substr(0, shown);
      held_.erase(0, shown);
      if (at == std::string::npos) return false;
      held_.erase(0, begin.size());
      state_ = State::between;
      return true;
    }
    case State::between: {
      size_t call = held_.find(m.call_begin), end = held_.find(m.calls_end);
      if (end < call) {
        held_.erase(0, end + m.calls_end.size());
        state_ = State::content;
        return true;
      }
      if (call == std::string::npos) return false;
      held_.erase(0, call + m.call_begin.size());
      state_ = State::name;
      return true;
    }
    case State::name:
      return take_name(out);
    case State::arguments:
      break;
  }
  std::string close = (fenced_ ? std::string(m.fence_end) : "") + std::string(m.call_end);
  size_t at = held_.find(close);
  size_t shown = at != std::string::npos ? at : held_.size() - (last ? 0 : held_bytes(held_, close));
  if (shown > 0) out.calls.push_back({.index = calls_ - 1, .id = {}, .name = {}, .arguments = held_.substr(0, shown)});
  held_.erase(0, shown);
  if (at == std::string::npos) return false;
  held_.erase(0, close.size());
  state_ = State::between;
  return true;
}

// A model may write either way, whatever its format's is.
bool ToolCalls::take_name(Parts& out) {
  const ToolMarkup& m = *markup_;
  size_t separator = held_.find(m.separator);
  if (separator == std::string::npos) return false;
  std::string name = held_.substr(0, separator);
  size_t begin = separator + m.separator.size();
  fenced_ = name == m.kind;
  if (fenced_) {
    size_t fence = held_.find(m.fence_begin, begin);
    if (fence == std::string::npos) return false;
    name = held_.substr(begin, fence - begin);
    begin = fence + m.fence_begin.size();
  }
  held_.erase(0, begin);
  out.calls.push_back({.index = calls_, .id = fmt::format("{}{}", id_prefix_, calls_), .name = std::move(name), .arguments = {}});
  calls_++;
  state_ = State::arguments;
  return true;
}

}  // namespace stoker
