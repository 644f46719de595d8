#include "tools/serve/tool_calls.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "tools/serve/stop_strings.h"

namespace stoker {

namespace {

constexpr const char* kBlank = " \r\n\t";

std::string trimmed(const std::string& text) {
  size_t begin = text.find_first_not_of(kBlank);
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(kBlank) + 1 - begin);
}

}  // namespace

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
  switch (state_) {
    case State::content:
      return take_content(out, last);
    case State::between:
      return take_between(out, last);
    case State::name:
      return take_name(out, last);
    case State::arguments:
      return take_arguments(out, last);
  }
  return false;
}

// Up to a call. Some models leave out the mark before the first one.
bool ToolCalls::take_content(Parts& out, bool last) {
  std::string calls(markup_->calls_begin), call(markup_->call_begin);
  size_t at_calls = held_.find(calls), at_call = held_.find(call), at = std::min(at_calls, at_call);
  size_t shown = at;
  if (at == std::string::npos) shown = held_.size() - (last ? 0 : std::max(held_bytes(held_, calls), held_bytes(held_, call)));
  out.content += held_.substr(0, shown);
  held_.erase(0, shown);
  if (at == std::string::npos) return false;
  if (at == at_calls) held_.erase(0, calls.size());
  state_ = State::between;
  return true;
}

// Up to a call or the end of all. Text that stands there is none's argument.
bool ToolCalls::take_between(Parts& out, bool last) {
  const ToolMarkup& m = *markup_;
  size_t call = held_.find(m.call_begin), end = held_.find(m.calls_end), at = std::min(call, end);
  if (at == std::string::npos && !last) return false;
  std::string text = held_.substr(0, at);
  if (text.find_first_not_of(kBlank) != std::string::npos) out.content += text;
  held_.erase(0, at);
  if (at == std::string::npos) return false;
  held_.erase(0, at == call ? m.call_begin.size() : m.calls_end.size());
  state_ = at == call ? State::name : State::content;
  return true;
}

// A model may write either way, whatever its format's is.
bool ToolCalls::take_name(Parts& out, bool last) {
  const ToolMarkup& m = *markup_;
  size_t end = held_.find(m.call_end), separator = held_.find(m.separator);
  if (separator < end) {
    std::string name = trimmed(held_.substr(0, separator));
    size_t begin = separator + m.separator.size();
    fenced_ = name == m.kind;
    size_t fence = fenced_ ? held_.find(m.fence_begin, begin) : begin;
    if (!fenced_ || fence < end) {
      if (fenced_) name = trimmed(held_.substr(begin, fence - begin));
      held_.erase(0, fence + (fenced_ ? m.fence_begin.size() : 0));
      begin_call(out, std::move(name));
      state_ = State::arguments;
      return true;
    }
    if (end != std::string::npos || last) return take_odd_call(out, begin, end);
    return false;
  }
  return end != std::string::npos || last ? take_odd_call(out, 0, end) : false;
}

// A call that is not written as it should be, in held_ from `begin` on: a name, then what is in braces. Without them it is
// text, so that somebody sees it.
bool ToolCalls::take_odd_call(Parts& out, size_t begin, size_t end) {
  std::string text = held_.substr(begin, end == std::string::npos ? end : end - begin);
  held_.erase(0, end == std::string::npos ? end : end + markup_->call_end.size());
  state_ = State::between;
  size_t open = text.find('{'), close = text.rfind('}');
  std::string name = trimmed(text.substr(0, std::min(open, text.find('`'))));
  if (open == std::string::npos || name.empty() || name.find_first_of(kBlank) != std::string::npos) {
    out.content += text;
    return true;
  }
  begin_call(out, std::move(name));
  std::string arguments = text.substr(open, close == std::string::npos || close < open ? std::string::npos : close + 1 - open);
  out.calls.push_back({.index = calls_ - 1, .id = {}, .name = {}, .arguments = std::move(arguments)});
  return true;
}

void ToolCalls::begin_call(Parts& out, std::string name) {
  out.calls.push_back({.index = calls_, .id = fmt::format("{}{}", id_prefix_, calls_), .name = std::move(name), .arguments = {}});
  calls_++;
}

bool ToolCalls::take_arguments(Parts& out, bool last) {
  std::string close = (fenced_ ? std::string(markup_->fence_end) : "") + std::string(markup_->call_end);
  size_t at = held_.find(close);
  size_t shown = at != std::string::npos ? at : held_.size() - (last ? 0 : held_bytes(held_, close));
  if (shown > 0) out.calls.push_back({.index = calls_ - 1, .id = {}, .name = {}, .arguments = held_.substr(0, shown)});
  held_.erase(0, shown);
  if (at == std::string::npos) return false;
  held_.erase(0, close.size());
  state_ = State::between;
  return true;
}

}  // namespace stoker
