// Output rules: the fields of a request that say what its answer must look like, as a grammar: grammar (GBNF), json_schema,
// response_format, and calls of functions that are required.
#pragma once

#include <memory>

#include "runtime/grammar/grammar.h"
#include "runtime/tokenizer/tool_markup.h"
#include "tools/serve/request_body.h"
#include "tools/serve/tool_fields.h"

namespace stoker {

// What comes before the part of an answer that rules are about.
enum class Thinking { none, optional, open };

// Null: anything may come. Throws ApiError naming the field.
std::shared_ptr<const Grammar> text_rules(const RequestBody& body);
// `markup` is needed when there are tools.
std::shared_ptr<const Grammar> chat_rules(const RequestBody& body, const ToolWish& tools, const ToolMarkup* markup, Thinking thinking);

}  // namespace stoker
