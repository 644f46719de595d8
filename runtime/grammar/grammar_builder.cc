#include "runtime/grammar/grammar_builder.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/tokenizer/utf8.h"

namespace stoker {

namespace {

using Symbol = Grammar::Symbol;

constexpr u32 kFirstSurrogate = 0xd800, kLastSurrogate = 0xdfff;

// Calls use(first, last) for ranges whose ends have encodings of equal length that differ, from some byte on, in whole
// blocks: then the bytes of all between are the products of the ranges of bytes.
template <class Use>
void split_for_utf8(u32 first, u32 last, const Use& use) {
  auto cut = [&](u32 end) {
    split_for_utf8(first, end, use);
    split_for_utf8(end + 1, last, use);
  };
  for (u32 end : {0x7fu, 0x7ffu, 0xffffu})
    if (first <= end && last > end) return cut(end);
  if (last > 0x7f) {
    for (int i = 1; i <= 3; i++) {
      u32 mask = (1u << (6 * i)) - 1;
      if ((first & ~mask) == (last & ~mask)) continue;
      if ((first & mask) != 0) return cut(first | mask);
      if ((last & mask) != mask) return cut((last & ~mask) - 1);
    }
  }
  use(first, last);
}

std::string utf8_of(u32 code_point) {
  std::string bytes;
  append_utf8(bytes, code_point);
  return bytes;
}

}  // namespace

CodePointRanges normalised(CodePointRanges ranges) {
  std::sort(ranges.begin(), ranges.end());
  CodePointRanges out;
  for (auto [first, last] : ranges) {
    if (!out.empty() && first <= out.back().second + 1) {
      out.back().second = std::max(out.back().second, last);
    } else {
      out.emplace_back(first, last);
    }
  }
  return out;
}

CodePointRanges complement(const CodePointRanges& ranges) {
  CodePointRanges taken = ranges, out;
  taken.emplace_back(kFirstSurrogate, kLastSurrogate);
  u32 next = 0;
  for (auto [first, last] : normalised(taken)) {
    if (first > next) out.emplace_back(next, first - 1);
    next = last + 1;
  }
  if (next <= kLastCodePoint) out.emplace_back(next, kLastCodePoint);
  return out;
}

void GrammarBuilder::count(i64 symbols) {
  symbols_ += symbols;
  if (symbols_ > kMostSymbols)
    fail("the grammar is too large: more than {} symbols, repetitions written out; allow fewer", kMostSymbols);
}

i32 GrammarBuilder::named(const std::string& name) {
  auto [found, is_new] = by_name_.emplace(name, static_cast<i32>(rules_.size()));
  if (is_new) {
    count(1);
    rules_.emplace_back();
    names_.push_back(name);
    written_.push_back(false);
  }
  return found->second;
}

void GrammarBuilder::write(i32 rule, std::vector<Sequence> alternatives) {
  size_t at = static_cast<size_t>(rule);
  if (written_[at]) fail("the rule {} is written twice", names_[at]);
  for (const Sequence& sequence : alternatives) count(static_cast<i64>(sequence.size()) + 1);
  rules_[at] = std::move(alternatives);
  written_[at] = true;
}

Symbol GrammarBuilder::add(std::vector<Sequence> alternatives) {
  i32 rule = static_cast<i32>(rules_.size());
  rules_.emplace_back();
  names_.emplace_back();
  written_.push_back(false);
  write(rule, std::move(alternatives));
  return {Symbol::rule, rule};
}

Symbol GrammarBuilder::set_symbol(const ByteSet& set) {
  auto [found, is_new] = set_ids_.emplace(set.to_string(), static_cast<i32>(sets_.size()));
  if (is_new) sets_.push_back(set);
  return {Symbol::bytes, found->second};
}

Symbol GrammarBuilder::bytes_between(u32 first, u32 last) {
  ByteSet set;
  for (u32 byte = first; byte <= last; byte++) set.set(byte);
  return set_symbol(set);
}

GrammarBuilder::Sequence GrammarBuilder::text(std::string_view bytes) {
  Sequence sequence;
  for (char c : bytes) sequence.push_back(bytes_between(static_cast<u8>(c), static_cast<u8>(c)));
  return sequence;
}

Symbol GrammarBuilder::one_of(const CodePointRanges& ranges) {
  auto known = classes_.find(ranges);
  if (known != classes_.end()) return known->second;
  ByteSet ascii;
  Alternatives alternatives;
  for (auto [from, to] : ranges) {
    split_for_utf8(from, to, [&](u32 first, u32 last) {
      std::string low = utf8_of(first), high = utf8_of(last);
      if (low.size() == 1) {
        for (u32 byte = first; byte <= last; byte++) ascii.set(byte);
        return;
      }
      Sequence sequence;
      for (size_t i = 0; i < low.size(); i++)
        sequence.push_back(bytes_between(static_cast<u8>(low[i]), static_cast<u8>(high[i])));
      alternatives.push_back(std::move(sequence));
    });
  }
  if (ascii.any()) alternatives.push_back({set_symbol(ascii)});
  bool single = alternatives.size() == 1 && alternatives[0].size() == 1;
  Symbol symbol = single ? alternatives[0][0] : add(std::move(alternatives));
  return classes_[ranges] = symbol;
}

// Without limit a rule that ends in itself, else a chain of rules, each with one more: x{0,2} is (x (x)?)?.
GrammarBuilder::Sequence GrammarBuilder::repeated(const Sequence& what, i64 least, i64 most) {
  Sequence one = what.size() == 1 ? what : Sequence{add({what})};
  Sequence out;
  for (i64 i = 0; i < least; i++) {
    count(1);
    out.push_back(one[0]);
  }
  if (most == kUnbounded) {
    i32 rule = add({}).index;
    written_[static_cast<size_t>(rule)] = false;
    write(rule, {{one[0], {Symbol::rule, rule}}, {}});
    out.push_back({Symbol::rule, rule});
    return out;
  }
  Sequence rest;
  for (i64 i = least; i < most; i++) {
    Sequence more = one;
    more.insert(more.end(), rest.begin(), rest.end());
    rest = {add({std::move(more), {}})};
  }
  out.insert(out.end(), rest.begin(), rest.end());
  return out;
}

Grammar GrammarBuilder::build(const std::string& root) {
  for (size_t i = 0; i < rules_.size(); i++)
    if (!written_[i]) fail("the rule {} is used, but not written", names_[i]);
  if (!by_name_.contains(root)) fail("there is no rule {}, with which a grammar begins", root);
  drop_endless(by_name_[root]);
  check_left_recursion();
  Grammar grammar;
  grammar.root = by_name_[root];
  grammar.sets = sets_;
  for (const Alternatives& alternatives : rules_) {
    std::vector<i32>& begins = grammar.rules.emplace_back();
    for (const Sequence& sequence : alternatives) {
      begins.push_back(static_cast<i32>(grammar.symbols.size()));
      grammar.symbols.insert(grammar.symbols.end(), sequence.begin(), sequence.end());
      grammar.symbols.push_back({Symbol::end, 0});
    }
  }
  return grammar;
}

// Rules of which some alternative has only symbols that are so; bytes are when `bytes_are`.
std::vector<bool> GrammarBuilder::rules_made_of(bool bytes_are) const {
  std::vector<bool> found(rules_.size());
  auto counts = [&](const Symbol& s) { return s.kind == Symbol::bytes ? bytes_are : found[static_cast<size_t>(s.index)]; };
  for (bool changed = true; changed;) {
    changed = false;
    auto look = [&](size_t i) {
      if (found[i]) return;
      found[i] = std::any_of(rules_[i].begin(), rules_[i].end(),
                             [&](const Sequence& s) { return std::all_of(s.begin(), s.end(), counts); });
      changed = changed || found[i];
    };
    // Rules without a name come after what they are made of, named ones before: both directions settle fast.
    for (size_t i = 0; i < rules_.size(); i++) look(i);
    for (size_t i = rules_.size(); i-- > 0;) look(i);
  }
  return found;
}

// Alternatives that can never be completed, because they always contain themselves, would be traps for a sampler.
void GrammarBuilder::drop_endless(i32 root) {
  std::vector<bool> ends = rules_made_of(true);
  if (!ends[static_cast<size_t>(root)]) fail("no text can ever be complete: rules contain themselves without a way out");
  auto endless = [&](const Symbol& s) { return s.kind == Symbol::rule && !ends[static_cast<size_t>(s.index)]; };
  for (Alternatives& all : rules_)
    std::erase_if(all, [&](const Sequence& sequence) { return std::any_of(sequence.begin(), sequence.end(), endless); });
}

// A rule that can begin with itself would put places to return to on the automaton's stack without end. A call at the
// end of an alternative leaves nothing there, so circles of such calls alone ("(a*)*") are harmless.
void GrammarBuilder::check_left_recursion() const {
  struct Call {
    i32 rule;
    bool last;  // of its alternative
  };
  std::vector<bool> nullable = rules_made_of(false);
  std::vector<std::vector<Call>> first_calls(rules_.size());
  for (size_t i = 0; i < rules_.size(); i++) {
    for (const Sequence& sequence : rules_[i]) {
      for (size_t k = 0; k < sequence.size(); k++) {
        if (sequence[k].kind != Symbol::rule) break;
        first_calls[i].push_back({sequence[k].index, k + 1 == sequence.size()});
        if (!nullable[static_cast<size_t>(sequence[k].index)]) break;
      }
    }
  }
  // Strongly connected parts, by Tarjan's algorithm with a stack of its own: grammars of clients are nested deeply.
  i32 count = static_cast<i32>(rules_.size()), next_number = 1;
  std::vector<i32> number(rules_.size()), low(rules_.size()), part(rules_.size(), -1), open;
  struct Frame {
    i32 rule;
    size_t call;
  };
  for (i32 start = 0; start < count; start++) {
    if (number[static_cast<size_t>(start)] != 0) continue;
    std::vector<Frame> frames{{start, 0}};
    while (!frames.empty()) {
      size_t at = static_cast<size_t>(frames.back().rule);
      if (frames.back().call == 0 && number[at] == 0) {
        number[at] = low[at] = next_number++;
        open.push_back(static_cast<i32>(at));
      }
      if (frames.back().call < first_calls[at].size()) {
        i32 to = first_calls[at][frames.back().call++].rule;
        size_t target = static_cast<size_t>(to);
        if (number[target] == 0) {
          frames.push_back({to, 0});
        } else if (part[target] < 0) {
          low[at] = std::min(low[at], number[target]);
        }
        continue;
      }
      if (low[at] == number[at]) {
        for (bool done = false; !done;) {
          done = open.back() == static_cast<i32>(at);
          part[static_cast<size_t>(open.back())] = static_cast<i32>(at);
          open.pop_back();
        }
      }
      frames.pop_back();
      if (!frames.empty()) {
        size_t parent = static_cast<size_t>(frames.back().rule);
        low[parent] = std::min(low[parent], low[at]);
      }
    }
  }
  for (size_t i = 0; i < rules_.size(); i++)
    for (const Call& call : first_calls[i])
      if (!call.last && part[i] == part[static_cast<size_t>(call.rule)])
        fail("the rule {} begins with itself; write it so that something comes first",
             names_[i].empty() ? "of a group" : names_[i]);
}

}  // namespace stoker
