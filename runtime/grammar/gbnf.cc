#include "runtime/grammar/gbnf.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/grammar/grammar_builder.h"
#include "runtime/grammar/repetitions.h"
#include "runtime/tokenizer/utf8.h"

namespace stoker {

namespace {

using Sequence = GrammarBuilder::Sequence;

bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Grammar parse() {
    try {
      if (first_invalid_utf8(text_)) fail("it is not UTF-8");
      skip_blank(true);
      while (at_ < text_.size()) rule();
    } catch (const Error& e) {
      fail("grammar, line {}: {}", 1 + std::count(text_.begin(), text_.begin() + static_cast<i64>(at_), '\n'), e.what());
    }
    try {
      return builder_.build("root");
    } catch (const Error& e) {
      fail("grammar: {}", e.what());
    }
  }

 private:
  static constexpr int kDeepest = 100;
  static constexpr i64 kMostRepeats = 100'000;

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(std::string_view what) {
    if (text_.substr(at_, what.size()) != what) return false;
    at_ += what.size();
    return true;
  }

  void skip_blank(bool lines) {
    while (at_ < text_.size()) {
      char c = text_[at_];
      if (c == '#') {
        at_ = std::min(text_.find_first_of("\r\n", at_), text_.size());
      } else if (c == ' ' || c == '\t' || (lines && (c == '\r' || c == '\n'))) {
        at_++;
      } else {
        return;
      }
    }
  }

  std::string name() {
    size_t begin = at_;
    while (at_ < text_.size() && is_word(text_[at_])) at_++;
    if (begin == at_) fail("a rule's name was expected at '{}'", text_.substr(at_, 12));
    return std::string(text_.substr(begin, at_ - begin));
  }

  void rule() {
    std::string rule_name = name();
    skip_blank(false);
    if (!take("::=")) fail("::= was expected after {}", rule_name);
    skip_blank(true);
    builder_.write(builder_.named(rule_name), alternatives(0));
    if (at_ < text_.size() && peek() != '\n' && peek() != '\r') fail("'{}' was not expected", text_.substr(at_, 12));
    skip_blank(true);
  }

  std::vector<Sequence> alternatives(int depth) {
    if (depth > kDeepest) fail("groups are nested more than {} deep", kDeepest);
    std::vector<Sequence> all{sequence(depth)};
    while (take("|")) {
      skip_blank(true);
      all.push_back(sequence(depth));
    }
    return all;
  }

  Sequence sequence(int depth) {
    Sequence all;
    while (true) {
      Sequence item;
      char c = peek();
      if (take("\"")) {
        std::string bytes;
        while (!take("\"")) append_utf8(bytes, character());
        item = builder_.text(bytes);
      } else if (take("[")) {
        item = {char_class()};
      } else if (take("(")) {
        skip_blank(true);
        item = {builder_.add(alternatives(depth + 1))};
        if (!take(")")) fail(") was expected at '{}'", text_.substr(at_, 12));
      } else if (take(".")) {
        item = {builder_.one_of(complement({}))};
      } else if (is_word(c)) {
        item = {{Grammar::Symbol::rule, builder_.named(name())}};
      } else {
        return all;
      }
      item = repetition(std::move(item));
      all.insert(all.end(), item.begin(), item.end());
      skip_blank(depth > 0);
    }
  }

  Sequence repetition(Sequence item) {
    while (true) {
      skip_blank(false);
      if (take("*")) {
        item = builder_.repeated(item, 0, GrammarBuilder::kUnbounded);
      } else if (take("+")) {
        item = builder_.repeated(item, 1, GrammarBuilder::kUnbounded);
      } else if (take("?")) {
        item = builder_.repeated(item, 0, 1);
      } else if (take("{")) {
        i64 least = repetitions(text_, at_, kMostRepeats), most = least;
        if (take(",")) most = peek() == '}' ? GrammarBuilder::kUnbounded : repetitions(text_, at_, kMostRepeats);
        if (!take("}")) fail("}} was expected at '{}'", text_.substr(at_, 12));
        if (most != GrammarBuilder::kUnbounded && most < least) fail("{{{},{}}}: the second is less", least, most);
        item = builder_.repeated(item, least, most);
      } else {
        return item;
      }
    }
  }

  u32 hex(int digits) {
    u32 value = 0;
    for (int i = 0; i < digits; i++) {
      int digit = hex_value(peek());
      if (digit < 0) fail("{} hexadecimal digits were expected", digits);
      value = value * 16 + static_cast<u32>(digit);
      at_++;
    }
    if (value > kLastCodePoint || (value >= 0xd800 && value <= 0xdfff)) fail("{:x} is no character", value);
    return value;
  }

  u32 character() {
    if (at_ >= text_.size()) fail("the grammar ends inside a text or a class");
    if (!take("\\")) {
      i64 size = utf8_step(text_.substr(at_)).bytes;
      u32 value = static_cast<u8>(text_[at_]);
      if (size > 1) value &= (0x7fu >> size);
      for (i64 i = 1; i < size; i++) value = value << 6 | (static_cast<u8>(text_[at_ + static_cast<size_t>(i)]) & 0x3f);
      at_ += static_cast<size_t>(size);
      return value;
    }
    char c = peek();
    at_++;
    switch (c) {
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 't':
        return '\t';
      case 'x':
        return hex(2);
      case 'u':
        return hex(4);
      case 'U':
        return hex(8);
      case '\\':
      case '"':
      case '[':
      case ']':
      case '-':
      case '^':
        return static_cast<u32>(c);
      default:
        fail("\\{} is no escape", c);
    }
  }

  Grammar::Symbol char_class() {
    bool negated = take("^");
    CodePointRanges ranges;
    while (!take("]")) {
      u32 first = character(), last = first;
      if (peek() == '-' && at_ + 1 < text_.size() && text_[at_ + 1] != ']') {
        at_++;
        last = character();
      }
      if (last < first) fail("a range of characters ends before it begins");
      ranges.emplace_back(first, last);
    }
    ranges = negated ? complement(ranges) : normalised(std::move(ranges));
    if (ranges.empty()) fail("a class has no characters");
    return builder_.one_of(ranges);
  }

  std::string_view text_;
  size_t at_ = 0;
  GrammarBuilder builder_;
};

}  // namespace

Grammar parse_gbnf(std::string_view text) { return Parser(text).parse(); }

std::string gbnf_text(std::string_view bytes) {
  std::string out = "\"";
  for (char c : bytes) {
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (static_cast<u8>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\x{:02x}", static_cast<u8>(c));
    } else {
      out += c;
    }
  }
  return out + "\"";
}

}  // namespace stoker
