// Grammar: a context-free grammar over bytes. Plain data, made by a GrammarBuilder, read by a ByteAutomaton. Immutable;
// any thread may read it.
#pragma once

#include <bitset>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

using ByteSet = std::bitset<256>;

struct Grammar {
  struct Symbol {
    enum Kind : u8 {
      bytes,  // one byte of sets[index]
      rule,   // a text of rules[index]
      end,    // of an alternative
    } kind = end;
    i32 index = 0;
  };
  std::vector<Symbol> symbols;          // all alternatives, one after the other, each with an `end`
  std::vector<std::vector<i32>> rules;  // where in `symbols` each alternative of a rule begins
  std::vector<ByteSet> sets;
  i32 root = 0;
};

}  // namespace stoker
