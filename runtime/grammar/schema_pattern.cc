#include "runtime/grammar/schema_pattern.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/grammar/grammar_builder.h"
#include "runtime/tokenizer/utf8.h"

namespace stoker {

namespace {

const CodePointRanges kDigits = {{'0', '9'}};
const CodePointRanges kWord = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
const CodePointRanges kSpace = {{'\t', '\r'}, {' ', ' '}};
// What anybody takes for space, so that the opposite is none for all.
const CodePointRanges kWidestSpace = {{'\t', '\r'},     {0x1c, 0x20},     {0x85, 0x85},     {0xa0, 0xa0},     {0x1680, 0x1680}, {0x2000, 0x200a},
                                      {0x2028, 0x2029}, {0x202f, 0x202f}, {0x205f, 0x205f}, {0x3000, 0x3000}, {0xfeff, 0xfeff}};
const CodePointRanges kLineEnds = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};
const CodePointRanges kEscapedInJson = {{0, 0x1f}, {'"', '"'}, {'\\', '\\'}};

CodePointRanges ascii_only(CodePointRanges ranges) {
  CodePointRanges out;
  for (auto [first, last] : ranges)
    if (first < 0x80) out.emplace_back(first, std::min(last, 0x7fu));
  return out;
}

CodePointRanges without(const CodePointRanges& from, const CodePointRanges& what) {
  CodePointRanges taken = complement(from);
  taken.insert(taken.end(), what.begin(), what.end());
  return complement(taken);
}

std::string escaped_in_json(u32 c) {
  switch (c) {
    case '"':
      return R"("\\\"")";
    case '\\':
      return R"("\\\\")";
    case '\b':
      return R"("\\b")";
    case '\f':
      return R"("\\f")";
    case '\n':
      return R"("\\n")";
    case '\r':
      return R"("\\r")";
    case '\t':
      return R"("\\t")";
    default:
      return fmt::format(R"("\\u{:04x}")", c);
  }
}

// One of these characters, as JSON writes it.
std::string json_character(const CodePointRanges& ranges) {
  std::vector<std::string> all;
  std::string plain;
  for (auto [first, last] : without(ranges, kEscapedInJson)) plain += fmt::format("\\U{:08x}-\\U{:08x}", first, last);
  if (!plain.empty()) all.push_back("[" + plain + "]");
  for (auto [first, last] : kEscapedInJson)
    for (u32 c = first; c <= last; c++)
      if (std::any_of(ranges.begin(), ranges.end(), [&](auto range) { return c >= range.first && c <= range.second; }))
        all.push_back(escaped_in_json(c));
  if (all.empty()) fail("a class has no characters");
  return all.size() == 1 ? all[0] : fmt::format("({})", fmt::join(all, " | "));
}

class PatternParser {
 public:
  explicit PatternParser(std::string_view text) : text_(text) {}

  std::string parse() {
    if (first_invalid_utf8(text_)) fail("it is not UTF-8");
    std::vector<std::string> all;
    do {
      all.push_back(whole_alternative());
    } while (take("|"));
    if (at_ < text_.size()) fail("'{}' was not expected", text_.substr(at_));
    return fmt::format("\"\\\"\" ({}) \"\\\"\"", fmt::join(all, " | "));
  }

 private:
  static constexpr int kDeepest = 50;
  static constexpr i64 kMostRepeats = 10'000;

  bool more() const { return at_ < text_.size(); }
  char peek() const { return more() ? text_[at_] : '\0'; }
  bool take(std::string_view what) {
    if (text_.substr(at_, what.size()) != what) return false;
    at_ += what.size();
    return true;
  }

  // Where a pattern is not anchored anything may stand.
  std::string whole_alternative() {
    std::string anything = json_character(complement({})) + "*";
    std::string before = take("^") ? "" : anything + " ";
    std::string body = sequence(0);
    return before + body + (take("$") ? "" : " " + anything);
  }

  std::string alternatives(int depth) {
    if (depth > kDeepest) fail("groups are nested more than {} deep", kDeepest);
    std::string all = sequence(depth);
    while (take("|")) all += " | " + sequence(depth);
    return "(" + all + ")";
  }

  std::string sequence(int depth) {
    std::string all;
    while (more() && peek() != '|' && peek() != ')') {
      if (peek() == '$' && depth == 0 && (at_ + 1 == text_.size() || text_[at_ + 1] == '|')) break;
      if (peek() == '$' || peek() == '^') fail("anchors inside a pattern are not supported");
      std::string item = atom(depth);
      all += (all.empty() ? "" : " ") + item + quantifier();
    }
    return all.empty() ? "\"\"" : all;
  }

  std::string atom(int depth) {
    if (take("(")) {
      if (take("?") && !take(":")) {
        size_t end = text_.find('>', at_);
        bool is_name = peek() == '<' && end != std::string_view::npos && text_.substr(at_, 2) != "<=" && text_.substr(at_, 2) != "<!";
        if (!is_name) fail("look-around is not supported");
        at_ = end + 1;
      }
      std::string group = alternatives(depth + 1);
      if (!take(")")) fail("a group is not closed");
      return group;
    }
    if (take("[")) return json_character(char_class());
    if (take(".")) return json_character(complement(kLineEnds));
    if (std::string_view("*+?{").find(peek()) != std::string_view::npos) fail("'{}' has nothing to repeat", peek());
    if (peek() == '\\') {
      bool ignored = false;
      return json_character(escape(false, ignored));
    }
    u32 c = character();
    return json_character({{c, c}});
  }

  std::string quantifier() {
    std::string out;
    if (peek() == '*' || peek() == '+' || peek() == '?') {
      out = text_[at_++];
    } else if (take("{")) {
      i64 least = number(), most = least;
      out = fmt::format("{{{}", least);
      if (take(",")) {
        out += ",";
        if (peek() != '}') out += std::to_string(most = number());
      }
      if (!take("}")) fail("a {{ is not closed");
      if (most < least) fail("{{{},{}}}: the second is less", least, most);
      out += "}";
    }
    if (!out.empty()) take("?");  // greedy or not: the same texts
    return out;
  }

  i64 number() {
    i64 value = 0;
    size_t begin = at_;
    while (peek() >= '0' && peek() <= '9') {
      value = value * 10 + (text_[at_++] - '0');
      if (value > kMostRepeats) fail("more than {} repetitions", kMostRepeats);
    }
    if (begin == at_) fail("a number was expected after {{");
    return value;
  }

  u32 character() {
    i64 size = utf8_step(text_.substr(at_)).bytes;
    u32 value = static_cast<u8>(text_[at_]);
    if (size > 1) value &= (0x7fu >> size);
    for (i64 i = 1; i < size; i++) value = value << 6 | (static_cast<u8>(text_[at_ + static_cast<size_t>(i)]) & 0x3f);
    at_ += static_cast<size_t>(size);
    return value;
  }

  u32 hex(size_t digits) {
    u32 value = 0;
    for (size_t i = 0; i < digits; i++) {
      char c = peek();
      int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
      if (digit < 0) fail("{} hexadecimal digits were expected", digits);
      value = value * 16 + static_cast<u32>(digit);
      at_++;
    }
    if (value >= 0xd800 && value <= 0xdfff) fail("surrogates are not supported");
    return value;
  }

  // `negated`: in a class that takes the others. `opposite`: it was one of \D \W \S.
  CodePointRanges escape(bool negated, bool& opposite) {
    at_++;
    char c = peek();
    if (!more()) fail("the pattern ends in \\");
    opposite = c == 'D' || c == 'W' || c == 'S';
    auto of = [&](const CodePointRanges& ranges) {
      at_++;
      return ranges;
    };
    auto one = [&](u32 value) { return of({{value, value}}); };
    switch (c) {
      case 'd':
        return of(kDigits);
      case 'w':
        return of(kWord);
      case 's':
        return of(negated ? kWidestSpace : kSpace);
      case 'D':
        return of(ascii_only(complement(kDigits)));
      case 'W':
        return of(ascii_only(complement(kWord)));
      case 'S':
        return of(complement(kWidestSpace));
      case 'n':
        return one('\n');
      case 'r':
        return one('\r');
      case 't':
        return one('\t');
      case 'f':
        return one('\f');
      case 'v':
        return one('\v');
      case '0':
        return one(0);
      case 'x': {
        at_++;
        u32 value = hex(2);
        return {{value, value}};
      }
      case 'u': {
        at_++;
        u32 value = hex(4);
        return {{value, value}};
      }
      default:
        break;
    }
    bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (letter) fail("\\{} is not supported", c);
    u32 value = character();
    return {{value, value}};
  }

  CodePointRanges char_class() {
    bool negated = take("^");
    CodePointRanges ranges;
    while (!take("]")) {
      if (!more()) fail("a class is not closed");
      bool opposite = false;
      CodePointRanges item = class_item(negated, opposite);
      if (negated && opposite) fail("a class that is negated twice, as [^\\W], is not supported");
      bool single = item.size() == 1 && item[0].first == item[0].second;
      if (single && peek() == '-' && at_ + 1 < text_.size() && text_[at_ + 1] != ']') {
        at_++;
        CodePointRanges end = class_item(negated, opposite);
        if (end.size() != 1 || end[0].first != end[0].second || end[0].first < item[0].first) fail("a range of characters is wrong");
        item[0].second = end[0].first;
      }
      ranges.insert(ranges.end(), item.begin(), item.end());
    }
    return negated ? complement(ranges) : normalised(std::move(ranges));
  }

  CodePointRanges class_item(bool negated, bool& opposite) {
    if (text_.substr(at_, 2) == "\\b") {
      at_ += 2;
      return {{'\b', '\b'}};
    }
    if (peek() == '\\') return escape(negated, opposite);
    u32 c = character();
    return {{c, c}};
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

std::string pattern_expression(std::string_view pattern) {
  try {
    return PatternParser(pattern).parse();
  } catch (const Error& e) {
    fail("the pattern {}: {}", pattern, e.what());
  }
}

}  // namespace stoker
