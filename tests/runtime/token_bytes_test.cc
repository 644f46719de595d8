#include "runtime/token_bytes.h"

#include <doctest/doctest.h>

#include "runtime/engine.h"
#include "scheduler/model_file/gguf.h"
#include "tests/support/tiny_model.h"

namespace stoker {
namespace {

// Bytes of the tensors that a token must read, from the file's own table.
TokenBytes from_file(const Engine& engine) {
  const Hparams& h = engine.hparams();
  auto has = [](const std::string& name, const char* part) { return name.find(part) != std::string::npos; };
  TokenBytes bytes;
  for (const GgufTensor& t : engine.gguf().tensors()) {
    if (has(t.name, "norm") || has(t.name, "probs_b") || has(t.name, "token_embd")) continue;
    if (has(t.name, "_exps"))
      bytes.experts += t.bytes * h.top_k / h.experts;
    else if (has(t.name, ".attn_"))
      bytes.attention += t.bytes;
    else
      bytes.rest += t.bytes;
  }
  return bytes;
}

TEST_CASE("a token reads every resident matrix once and top-k experts of every layer") {
  test::TinyModel model;
  EngineOptions options;
  options.model_path = model.path();
  options.context = 16;
  Engine engine(options);
  TokenBytes expected = from_file(engine), bytes = engine.token_bytes();
  CHECK(bytes.attention == expected.attention);
  CHECK(bytes.experts == expected.experts);
  CHECK(bytes.rest == expected.rest);
  CHECK(bytes.weights() == expected.attention + expected.experts + expected.rest);
  const Hparams& h = engine.hparams();
  CHECK(bytes.cache_per_position == h.layers * h.cache_row() * 2);
}

}  // namespace
}  // namespace stoker
