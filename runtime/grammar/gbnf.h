// GBNF, llama.cpp's way of writing grammars:
//
//   root   ::= "yes" | "no" reason?      # alternatives, * + ? {2} {2,} {2,5}, groups ( )
//   reason ::= ", because " [^\n]{1,80}  # classes of characters; . is any
//
// Escapes in texts and classes: \n \r \t \\ \" \] \[ \- \^ \xHH \uHHHH \UHHHHHHHH. A rule ends with its line, except inside a
// group and after ::= and |.
#pragma once

#include <string>
#include <string_view>

#include "runtime/grammar/grammar.h"

namespace stoker {

// Throws Error with the line at fault.
Grammar parse_gbnf(std::string_view text);

// A text of this grammar's language: quoted, with escapes.
std::string gbnf_text(std::string_view bytes);

}  // namespace stoker
