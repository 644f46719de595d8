#include "runtime/grammar/schema_pattern.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/grammar/repetitions.h"
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

}  // namespace

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

namespace {

class PatternParser {
 public:
  explicit PatternParser(std::string_view text) : text_(text) {}

  Pattern parse() {
    if (first_invalid_utf8(text_)) fail("it is not UTF-8");
    Pattern all{.kind = Pattern::Kind::choice};
    do {
      all.parts.push_back(whole_alternative());
    } while (take("|"));
    if (at_ < text_.size()) fail("'{}' was not expected", text_.substr(at_));
    return all;
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

  static Pattern one_of(CodePointRanges ranges) {
    if (ranges.empty()) fail("a class has no characters");
    return {.kind = Pattern::Kind::characters, .characters = std::move(ranges)};
  }
  static Pattern repeated(Pattern what, i64 least, i64 most) {
    return {.kind = Pattern::Kind::repeat, .parts = {std::move(what)}, .least = least, .most = most};
  }

  // Where a pattern is not anchored anything may stand.
  Pattern whole_alternative() {
    Pattern anything = repeated(one_of(complement({})), 0, -1), all{.kind = Pattern::Kind::sequence};
    if (!take("^")) all.parts.push_back(anything);
    all.parts.push_back(sequence(0));
    if (!take("$")) all.parts.push_back(anything);
    return all;
  }

  Pattern alternatives(int depth) {
    if (depth > kDeepest) fail("groups are nested more than {} deep", kDeepest);
    Pattern all{.kind = Pattern::Kind::choice};
    do {
      all.parts.push_back(sequence(depth));
    } while (take("|"));
    return all;
  }

  Pattern sequence(int depth) {
    Pattern all{.kind = Pattern::Kind::sequence};
    while (more() && peek() != '|' && peek() != ')') {
      if (peek() == '$' && depth == 0 && (at_ + 1 == text_.size() || text_[at_ + 1] == '|')) break;
      if (peek() == '$' || peek() == '^') fail("anchors inside a pattern are not supported");
      all.parts.push_back(quantified(atom(depth)));
    }
    return all;
  }

  Pattern atom(int depth) {
    if (take("(")) {
      if (take("?") && !take(":")) {
        size_t end = text_.find('>', at_);
        bool is_name = peek() == '<' && end != std::string_view::npos && text_.substr(at_, 2) != "<=" && text_.substr(at_, 2) != "<!";
        if (!is_name) fail("look-around is not supported");
        at_ = end + 1;
      }
      Pattern group = alternatives(depth + 1);
      if (!take(")")) fail("a group is not closed");
      return group;
    }
    if (take("[")) return one_of(char_class());
    if (take(".")) return one_of(complement(kLineEnds));
    if (std::string_view("*+?{").find(peek()) != std::string_view::npos) fail("'{}' has nothing to repeat", peek());
    if (peek() == '\\') {
      bool ignored = false;
      return one_of(escape(false, ignored));
    }
    u32 c = character();
    return one_of({{c, c}});
  }

  Pattern quantified(Pattern what) {
    i64 least = 1, most = 1;
    if (take("*")) {
      least = 0;
      most = -1;
    } else if (take("+")) {
      most = -1;
    } else if (take("?")) {
      least = 0;
    } else if (take("{")) {
      least = most = repetitions(text_, at_, kMostRepeats);
      if (take(",")) most = peek() == '}' ? -1 : repetitions(text_, at_, kMostRepeats);
      if (!take("}")) fail("a {{ is not closed");
      if (most >= 0 && most < least) fail("{{{},{}}}: the second is less", least, most);
    } else {
      return what;
    }
    take("?");  // greedy or not: the same texts
    return repeated(std::move(what), least, most);
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

Pattern parse_pattern(std::string_view pattern) {
  try {
    return PatternParser(pattern).parse();
  } catch (const Error& e) {
    fail("the pattern {}: {}", pattern, e.what());
  }
}

namespace {

std::string expression_of(const Pattern& p) {
  switch (p.kind) {
    case Pattern::Kind::characters: return json_character(p.characters);
    case Pattern::Kind::repeat:
      return expression_of(p.parts[0]) + (p.most < 0 ? fmt::format("{{{},}}", p.least) : fmt::format("{{{},{}}}", p.least, p.most));
    case Pattern::Kind::sequence:
    case Pattern::Kind::choice: break;
  }
  std::string all;
  for (const Pattern& part : p.parts)
    all += (all.empty() ? "" : p.kind == Pattern::Kind::choice ? " | " : " ") + expression_of(part);
  return all.empty() ? "\"\"" : "(" + all + ")";
}

}  // namespace

std::string pattern_expression(const Pattern& pattern) { return fmt::format(R"("\"" {} "\"")", expression_of(pattern)); }

}  // namespace stoker
