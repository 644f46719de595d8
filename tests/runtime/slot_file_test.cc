#include "runtime/slot_file.h"

#include <doctest/doctest.h>

#include <cstring>

#include "kernels/base/error.h"
#include "runtime/engine.h"
#include "tests/support/compare.h"
#include "tests/support/model_run.h"
#include "tests/support/shared_data.h"
#include "tests/support/temp_folder.h"

namespace stoker {
namespace {

constexpr u64 kModel = 77;

EngineOptions options() {
  EngineOptions o = test::small_engine(test::source_file("tests/models/ember-37m-q4_k_m.gguf"));
  o.sequences = 2;
  return o;
}

void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string problem(const std::string& path, KvCache& cache, i64 layers, u64 model = kModel) {
  try {
    restore_slot(path, model, layers, 1 << 20, cache);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("logits that follow a restored cache have the bits of those that follow the cache itself") {
  test::TempFolder folder;
  Engine engine(options());
  i64 layers = engine.hparams().layers;
  std::vector<i32> prompt = test::some_tokens(40, 4000, 3), next = test::some_tokens(8, 4000, 4);
  auto continued = [&](i32 sequence) {
    std::vector<BatchRow> rows;
    for (size_t i = 0; i < next.size(); i++)
      rows.push_back({SequenceId(sequence), static_cast<i32>(prompt.size() + i), next[i], true, RowRole::prompt});
    std::vector<f32> logits(next.size() * static_cast<size_t>(engine.hparams().vocab));
    REQUIRE(engine.forward(rows, logits).ok());
    return logits;
  };
  test::logits_of(engine, prompt, 40);
  std::string path = folder.file("a.slot");
  i64 bytes = save_slot(path, slot_model_id(engine), layers, prompt, engine.sequence(SequenceId(0)));
  CHECK(bytes == static_cast<i64>(std::filesystem::file_size(path)));
  std::vector<f32> want = continued(0);

  KvCache& other = engine.sequence(SequenceId(1));
  SlotFileInfo info = restore_slot(path, slot_model_id(engine), layers, engine.hparams().vocab, other);
  CHECK(info.tokens == prompt);
  CHECK(other.length() == 40);
  CHECK(test::first_difference(continued(1), want) == -1);
}

TEST_CASE("a file that is cut off or has one byte changed anywhere is refused, and leaves nothing behind") {
  test::TempFolder folder;
  Hparams hparams;
  hparams.layers = 3;
  hparams.latent = 20;
  hparams.rope = 4;
  KvCache cache(hparams, 16, CacheType::F16);
  std::vector<i32> tokens = {5, 6, 7, 8, 9};
  for (i32 layer = 0; layer < 3; layer++) std::memset(cache.row(LayerId(layer), 0), 17 + layer, 5 * 48);
  std::string path = folder.file("a.slot");
  save_slot(path, kModel, 3, tokens, cache);
  std::string good = test::read_text(path);
  CHECK(problem(path, cache, 3) == "");
  CHECK(cache.length() == 5);
  for (size_t at = 0; at < good.size(); at++) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    write_bytes(path, bad);
    CAPTURE(at);
    std::string text = problem(path, cache, 3);
    CHECK(text != "");
    CHECK((cache.length() == 0 || at < 48));
    cache.set_length(5);
  }
  for (size_t size = 0; size < good.size(); size++) {
    write_bytes(path, good.substr(0, size));
    CAPTURE(size);
    CHECK(problem(path, cache, 3) != "");
  }
  write_bytes(path, good + "x");
  CHECK(contains(problem(path, cache, 3), "bytes instead of"));
}

TEST_CASE("a file of another model, kind or size is refused by name") {
  test::TempFolder folder;
  Hparams hparams;
  hparams.layers = 2;
  hparams.latent = 28;
  hparams.rope = 4;
  KvCache cache(hparams, 16, CacheType::F16), small(hparams, 3, CacheType::F16), floats(hparams, 16, CacheType::F32);
  std::vector<i32> tokens = {1, 2, 3, 4};
  std::string path = folder.file("a.slot");
  save_slot(path, kModel, 2, tokens, cache);
  CHECK(contains(problem(path, cache, 2, kModel + 1), "another model"));
  CHECK(contains(problem(path, floats, 2), "another kind of cache"));
  CHECK(contains(problem(path, small, 2), "more than the context of 3"));
  CHECK(contains(problem(path, cache, 3), "damaged"));
  CHECK(contains(problem(folder.file("none"), cache, 2), "cannot open"));
  write_bytes(path, "GGUF and more than forty-eight bytes of something else entirely");
  CHECK(contains(problem(path, cache, 2), "no saved slot"));
}

TEST_CASE("models are told apart by their weights and by the options that change the maths") {
  Engine plain(options());
  EngineOptions exact = options();
  exact.exact = true;
  CHECK(slot_model_id(plain) == slot_model_id(Engine(options())));
  CHECK(slot_model_id(plain) != slot_model_id(Engine(exact)));
}

}  // namespace stoker
