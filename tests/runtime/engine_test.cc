// What goes wrong around an engine: bad files, settings that cannot work, reads that fail in the middle of a run.
#include "runtime/engine.h"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/base/error.h"
#include "runtime/piece_size.h"
#include "runtime/tokenizer/tokenizer.h"
#include "scheduler/model_file/gguf.h"
#include "tests/support/compare.h"
#include "tests/support/edited_model.h"
#include "tests/support/model_run.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"

namespace stoker {
namespace {

using test::EditedModel;
using test::TinyModel;

const TinyModel& tiny() {
  static const TinyModel model;
  return model;
}

std::string complaint(const EngineOptions& options) {
  try {
    Engine engine(options);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

bool mentions(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Cuts a file at `bytes` and puts the rest back later.
class CutFile {
 public:
  CutFile(const std::string& path, i64 bytes) : path_(path), bytes_(bytes), whole_(test::read_text(path)) {
    REQUIRE(truncate(path.c_str(), bytes) == 0);
  }
  ~CutFile() {
    std::fstream out(path_, std::ios::binary | std::ios::in | std::ios::out);
    out.seekp(bytes_);
    out.write(whole_.data() + bytes_, static_cast<std::streamsize>(whole_.size()) - bytes_);
  }
  CutFile(const CutFile&) = delete;
  CutFile& operator=(const CutFile&) = delete;

 private:
  std::string path_;
  i64 bytes_;
  std::string whole_;
};

// A model whose last layer's experts are at the very end of the file, in a file of its own.
std::string model_with_experts_last(const TinyModel& model) {
  EditedModel edited(model.path());
  for (const char* name : {"blk.2.ffn_gate_exps.weight", "blk.2.ffn_up_exps.weight", "blk.2.ffn_down_exps.weight"}) {
    EditedModel::Tensor tensor = edited.tensor(name);
    edited.remove(name);
    edited.add(name, std::move(tensor));
  }
  return edited.write(model.folder().file("experts-last.gguf"));
}

}  // namespace

TEST_CASE("files that are no model are refused with their path") {
  const test::TempFolder& folder = tiny().folder();
  EngineOptions options = test::small_engine(folder.file("nothing-here.gguf"));
  CHECK(mentions(complaint(options), "nothing-here.gguf"));
  options.model_path = folder.write("empty.gguf", "");
  CHECK(mentions(complaint(options), "empty.gguf"));
  options.model_path = folder.write("text.gguf", "This is not a model, it is only called so.");
  CHECK(mentions(complaint(options), "text.gguf"));
  options.model_path = folder.file("");
  CHECK(complaint(options) != "");
}

TEST_CASE("a file that ends in the middle of an expert is refused when it is opened") {
  TinyModel model;
  std::string path = model_with_experts_last(model);
  i64 bytes = Gguf::open(path).files()[0].bytes;
  for (i64 missing : {i64{1}, bytes / 10}) {
    CutFile cut(path, bytes - missing);
    std::string text = complaint(test::small_engine(path));
    CHECK_MESSAGE(mentions(text, "experts-last.gguf"), text);
    CHECK_MESSAGE(mentions(text, "blk.2.ffn_"), text);
  }
  CHECK(complaint(test::small_engine(path)) == "");
}

TEST_CASE("a model without experts is refused") {
  EditedModel model(tiny().path());
  model.set("deepseek2.leading_dense_block_count", gguf_u32(3));
  CHECK(mentions(complaint(test::small_engine(model.write(tiny().folder().file("dense.gguf")))), "no layer with experts"));
}

TEST_CASE("a model without a tokenizer takes token ids") {
  EditedModel model(tiny().path());
  Gguf gguf = Gguf::open(tiny().path());
  for (const auto& [key, value] : gguf.metadata())
    if (key.starts_with("tokenizer.")) model.remove_key(key);
  std::string path = model.write(tiny().folder().file("mute.gguf"));
  Engine mute(test::small_engine(path)), speaking(test::small_engine(tiny().path()));
  CHECK_THROWS_WITH_AS(mute.tokenizer(), doctest::Contains("no tokenizer"), Error);
  std::vector<i32> tokens = test::some_tokens(12, 512, 1);
  CHECK(test::difference(test::logits_of(mute, tokens, 12), test::logits_of(speaking, tokens, 12), 512) == "");
  CHECK(test::greedy(mute, tokens, 4).size() == 4);
}

TEST_CASE("a tokenizer with more tokens than the model has is refused") {
  EditedModel model(tiny().path());
  for (const char* name : {"token_embd.weight", "output.weight"}) {
    EditedModel::Tensor& table = model.tensor(name);
    table.bytes.resize(table.bytes.size() / 2);
    table.shape[1] /= 2;
  }
  std::string text = complaint(test::small_engine(model.write(tiny().folder().file("short.gguf"))));
  CHECK_MESSAGE(mentions(text, "tokens"), text);
  CHECK_MESSAGE(mentions(text, "256"), text);
}

TEST_CASE("groups that cannot work are refused") {
  EngineOptions options = test::small_engine(tiny().path());  // 16 experts, 4 per token
  using Mode = ExpertGroups::Mode;
  for (ExpertGroups bad : {ExpertGroups{Mode::fixed, 3, 1}, ExpertGroups{Mode::fixed, 0, 1}, ExpertGroups{Mode::fixed, 4, 5},
                           ExpertGroups{Mode::fixed, 4, 0}, ExpertGroups{Mode::fixed, 8, 1}}) {
    options.expert_groups = bad;
    CHECK(mentions(complaint(options), "--expert-groups"));
  }
  options.expert_groups = {Mode::fixed, 8, 2};
  CHECK(complaint(options) == "");
}

TEST_CASE("sizes that cannot work are refused") {
  EngineOptions options = test::small_engine(tiny().path());
  options.context = 0;
  CHECK(mentions(complaint(options), "-c"));
  options = test::small_engine(tiny().path());
  options.sequences = 0;
  CHECK(complaint(options) != "");
  options = test::small_engine(tiny().path());
  for (i64 context : {i64{1} << 31, i64{1} << 62}) {  // positions are 32-bit numbers
    options.context = context;
    options.chunk = 1;
    CHECK(mentions(complaint(options), "-c"));
  }
}

TEST_CASE("pieces of a prompt are large where experts are read again for each, and nobody says otherwise") {
  EngineOptions options = test::small_engine(tiny().path());
  options.context = 4096;
  options.chunk = 0;
  CHECK(Engine(options).options().chunk == kPiece);
  options.ram_bytes = kMiB + kMiB / 2;
  CHECK(Engine(options).options().chunk == kLargestPiece);
  options.devices = {.kind = DeviceChoice::Kind::host, .cards = {}, .host = {HostDeviceOptions{}}};
  options.vram_bytes = {0};
  CHECK(Engine(options).options().chunk == kPiece);
  options.devices = {};
  options.vram_bytes = {};
  options.chunk = 100;
  CHECK(Engine(options).options().chunk == 100);
  options.chunk = 0;
  options.context = 900;
  CHECK(Engine(options).options().chunk == 900);
}

TEST_CASE("a piece's buffers take a quarter of what is free, and no more") {
  auto kilobyte_per_row = [](i64 rows) { return rows * kKiB; };
  CHECK(largest_piece(4096, 0, kilobyte_per_row) == 512);
  CHECK(largest_piece(4096, 4 * 512 * kKiB - 1, kilobyte_per_row) == 512);
  CHECK(largest_piece(4096, 4 * 512 * kKiB, kilobyte_per_row) == 1024);
  CHECK(largest_piece(4096, 4 * 1536 * kKiB, kilobyte_per_row) == 2048);
  CHECK(largest_piece(4096, -kGiB, kilobyte_per_row) == 512);
  CHECK(largest_piece(100, kGiB, kilobyte_per_row) == 100);
}

TEST_CASE("the footprint adds up") {
  EngineOptions options = test::small_engine(tiny().path());
  options.sequences = 3;
  Engine engine(options);
  EngineFootprint f = engine.footprint();
  CHECK(f.resident_bytes > 0);
  CHECK(f.kv_bytes == 3 * 3 * 256 * (256 + 32) * 2);  // sequences, layers, context, row, f16
  CHECK(f.expert_total == 2 * 16);
  CHECK(f.expert_slots == 2 * 16);
  CHECK(f.expert_total_bytes == 2 * 16 * 3 * 256 * 256 / 256 * 144);  // Q4_K: 144 bytes per 256
  CHECK(f.expert_budget_bytes == kGiB);
}

TEST_CASE("everything is read once when it fits, and counted") {
  EngineOptions options = test::small_engine(tiny().path());
  Engine engine(options);
  i64 preloaded = engine.scheduler_stats().bytes_read;
  CHECK(preloaded >= engine.footprint().expert_total_bytes);
  std::vector<i32> tokens = test::some_tokens(20, 512, 1);
  test::logits_of(engine, tokens, 20);
  test::generated_logits_of(engine, tokens);
  SchedulerStats stats = engine.scheduler_stats();
  CHECK(stats.bytes_read == preloaded);
  CHECK(stats.misses == 0);
  CHECK(stats.hits == stats.requests);
  CHECK(stats.requests >= 20 * 2 * 4);
  i64 total = 0;
  for (i64 ns : engine.timer().all_ns()) total += ns;
  CHECK(total > 0);
  CHECK(engine.timer().ns(Stage::experts) > 0);
}

TEST_CASE("a read that fails ends the request; the engine goes on, and answers rightly when reads work again") {
  TinyModel model;
  std::string path = model_with_experts_last(model);
  std::vector<i32> tokens = test::some_tokens(20, 512, 1);
  std::vector<f32> want = test::logits_of(test::small_engine(path), tokens);
  for (IoPath io : {IoPath::automatic, IoPath::pread}) {
    CAPTURE(static_cast<int>(io));
    EngineOptions options = test::small_engine(path);
    options.io = io;
    options.preload = false;
    options.sequences = 2;
    Engine engine(options);
    test::logits_of(engine, std::span(tokens).first(3), 3, SequenceId(1));
    std::vector<BatchRow> rows;
    for (size_t i = 0; i < tokens.size(); i++)
      rows.push_back({SequenceId(0), static_cast<i32>(i), tokens[i], true});
    std::vector<f32> logits(want.size());
    {
      // Only the last layer's experts are gone, so that the pass fails after two thirds of its work.
      CutFile cut(path, Gguf::open(path).tensor("blk.2.ffn_gate_exps.weight").offset);
      for (int attempt = 0; attempt < 2; attempt++) {
        Status status = engine.forward(rows, logits);
        REQUIRE(!status.ok());
        CHECK_MESSAGE(mentions(status.message(), "layer 2"), status.message());
        CHECK_MESSAGE(mentions(status.message(), "experts-last.gguf"), status.message());
        CHECK(engine.sequence(SequenceId(0)).length() == 0);
        CHECK(engine.sequence(SequenceId(1)).length() == 3);
      }
      // Another engine is not concerned.
      CHECK(test::greedy(*std::make_unique<Engine>(test::small_engine(tiny().path())), tokens, 2).size() == 2);
    }
    Status status = engine.forward(rows, logits);
    REQUIRE_MESSAGE(status.ok(), status.message());
    CHECK(test::difference(logits, want, 512) == "");
    CHECK(engine.sequence(SequenceId(0)).length() == 20);
  }
}

TEST_CASE("a file that loses its experts before they are read ahead is an error of loading") {
  TinyModel model;
  std::string path = model_with_experts_last(model);
  i64 offset = Gguf::open(path).tensor("blk.2.ffn_gate_exps.weight").offset;
  std::optional<CutFile> cut;
  auto progress = [&](std::string_view stage, i64 done, i64 total) {
    if (stage == "weights" && done == total && !cut) cut.emplace(path, offset);
    return true;
  };
  CHECK_THROWS_WITH_AS(Engine(test::small_engine(path), progress), doctest::Contains("experts-last.gguf"), Error);
}

}  // namespace stoker
