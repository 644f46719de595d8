// Experts on host devices: whoever computes an expert, and however late or badly its device behaves, must not show in the
// answer. Each run compares every logit with those of the CPU alone, bit for bit.
#include <doctest/doctest.h>

#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "kernels/base/rng.h"
#include "runtime/engine.h"
#include "runtime/slot_file.h"
#include "tests/support/compare.h"
#include "tests/support/edited_model.h"
#include "tests/support/model_run.h"
#include "tests/support/shared_data.h"
#include "tests/support/tiny_model.h"
#include "tests/support/watchdog.h"

namespace stoker {
namespace {

constexpr i64 kPromptTokens = 24, kGenerated = 16;

std::string ember() { return test::source_file("tests/models/ember-37m-q4_k_m.gguf"); }

EngineOptions on_cpu(const std::string& path, bool exact = false) {
  EngineOptions options = test::small_engine(path);
  options.context = 64;
  options.chunk = 16;
  options.exact = exact;
  return options;
}

EngineOptions on_devices(const std::string& path, i64 count, std::vector<i64> vram_bytes, const HostDeviceOptions& device = {},
                         bool exact = false) {
  EngineOptions options = on_cpu(path, exact);
  options.devices = {.kind = DeviceChoice::Kind::host, .cards = {}, .host = {static_cast<size_t>(count), device}};
  for (HostDeviceOptions& host : options.devices.host) host.only_pinned = true;
  options.vram_bytes = std::move(vram_bytes);
  return options;
}

struct Answer {
  std::vector<f32> logits;
  Status status;
};

// What follows `begin` tokens: a prompt in chunks, then token by token; up to the first failure.
Answer answer_from(Engine& engine, i64 begin, u64 seed = 1) {
  i64 vocab = engine.hparams().vocab;
  SequenceId id(0);
  std::vector<i32> tokens = test::some_tokens(kPromptTokens + kGenerated, vocab, seed);
  Answer a;
  engine.sequence(id).truncate(begin);
  for (i64 at = begin; at < kPromptTokens + kGenerated;) {
    bool prompt = at < kPromptTokens;
    i64 count = prompt ? std::min(engine.options().chunk, kPromptTokens - at) : 1;
    std::vector<BatchRow> rows;
    for (i64 i = at; i < at + count; i++)
      rows.push_back({id, static_cast<i32>(i), tokens[static_cast<size_t>(i)], true,
                      prompt ? RowRole::prompt : RowRole::generated});
    size_t before = a.logits.size();
    a.logits.resize(before + static_cast<size_t>(count * vocab));
    a.status = engine.forward(rows, std::span(a.logits).subspan(before));
    if (!a.status.ok()) {
      a.logits.resize(before);
      return a;
    }
    at += count;
  }
  return a;
}

Answer answer(Engine& engine, u64 seed = 1) { return answer_from(engine, 0, seed); }

std::vector<f32> expected(const EngineOptions& options) {
  Engine engine(options);
  Answer a = answer(engine);
  REQUIRE(a.status.ok());
  return a.logits;
}

void check_same(Engine& engine, const std::vector<f32>& want) {
  Answer got = answer(engine);
  REQUIRE_MESSAGE(got.status.ok(), got.status.message());
  CHECK(test::difference(got.logits, want, engine.hparams().vocab) == "");
}

i64 attention_layers(const Engine& engine) {
  i64 layers = 0;
  for (const DeviceFootprint& device : engine.footprint().devices) layers += device.attention_layers;
  return layers;
}

i64 rows_of_the_head(const Engine& engine) {
  i64 rows = 0;
  for (const DeviceFootprint& device : engine.footprint().devices) rows += device.head_rows;
  return rows;
}

// [from, all) of logits that begin with token 0.
std::span<const f32> logits_from(std::span<const f32> logits, i64 from, i64 vocab) {
  return logits.subspan(static_cast<size_t>(from * vocab));
}

// A vocabulary so large that devices read their parts of the head in several pieces.
std::string many_words(const test::TempFolder& folder) {
  test::EditedModel model(ember());
  for (const char* name : {"output.weight", "token_embd.weight"}) {
    test::EditedModel::Tensor& t = model.tensor(name);
    const std::string once = t.bytes;
    for (int i = 1; i < 6; i++) t.bytes += once;
    t.shape[1] *= 6;
  }
  return model.write(folder.file("many-words.gguf"));
}

// Experts of 48 inner rows: a tile and a half. Only float matrices may have so many columns.
std::string narrow_model(const test::TempFolder& folder) {
  constexpr i64 kFfn = 48;
  SynthOptions synth = test::tiny_options(BlockType::Q8_0);
  synth.down = synth.attention = BlockType::F16;
  test::TinyModel whole(synth);
  test::EditedModel model(whole.path());
  auto cut = [&](const std::string& name, i64 rows, i64 bytes) {  // of rows together, the first bytes
    test::EditedModel::Tensor& t = model.tensor(name);
    i64 all = static_cast<i64>(t.bytes.size()) / rows;
    std::string kept;
    for (i64 r = 0; r < rows; r++) kept += t.bytes.substr(static_cast<size_t>(r * all), static_cast<size_t>(bytes));
    t.bytes = kept;
  };
  for (const std::string& name : model.names()) {
    bool down = name.find("ffn_down_exps") != std::string::npos || name.find("ffn_down_shexp") != std::string::npos;
    bool wide = name.find("ffn_gate_exps") != std::string::npos || name.find("ffn_up_exps") != std::string::npos ||
                name.find("ffn_gate_shexp") != std::string::npos || name.find("ffn_up_shexp") != std::string::npos;
    if (!down && !wide) continue;
    test::EditedModel::Tensor& t = model.tensor(name);
    i64 experts = t.shape.size() > 2 ? t.shape[2] : 1;
    if (down) cut(name, t.shape[1] * experts, row_bytes(t.type, kFfn));
    if (wide) cut(name, experts, kFfn * row_bytes(t.type, t.shape[0]));
    t.shape[down ? 0 : 1] = kFfn;
  }
  model.set("deepseek2.expert_feed_forward_length", gguf_u32(kFfn));
  return model.write(folder.file("narrow.gguf"));
}

// While it lives, the program gets so many bytes of memory beyond those that it has, and not one more.
class LeftMemory {
 public:
  explicit LeftMemory(i64 bytes) {
    REQUIRE(getrlimit(RLIMIT_AS, &before_) == 0);
    rlimit limit = before_;
    limit.rlim_cur = static_cast<rlim_t>(in_use_bytes() + bytes);
    REQUIRE(setrlimit(RLIMIT_AS, &limit) == 0);
  }
  ~LeftMemory() { setrlimit(RLIMIT_AS, &before_); }

 private:
  static i64 in_use_bytes() {
    std::ifstream file("/proc/self/status");
    for (std::string word; file >> word;) {
      i64 kib = 0;
      if (word == "VmSize:" && file >> kib) return kib * kKiB;
    }
    return 0;
  }

  rlimit before_{};
};

}  // namespace

TEST_CASE("devices and their budgets do not show in what the bundled model says, and devices do compute") {
  for (bool exact : {false, true}) {
    std::vector<f32> want = expected(on_cpu(ember(), exact));
    for (const std::vector<i64>& vram : std::vector<std::vector<i64>>{{}, {2 * kMiB}, {6 * kMiB, kMiB}}) {
      CAPTURE(exact);
      CAPTURE(vram.size());
      Engine engine(on_devices(ember(), vram.size() < 2 ? 1 : 2, vram, {}, exact));
      check_same(engine, want);
      CHECK(engine.scheduler_stats().device_hits > 0);
    }
  }
}

TEST_CASE("each layer's dense or shared FFN is on its home device, as far as there is room, and none is lost with it") {
  std::vector<f32> want = expected(on_cpu(ember()));
  auto homes = [](const Engine& engine) {
    std::vector<i64> layers;
    for (const DeviceFootprint& device : engine.footprint().devices) layers.push_back(device.home_layers);
    return layers;
  };
  Engine roomy(on_devices(ember(), 2, {4 * kMiB}));
  CHECK(homes(roomy)[0] > 0);
  CHECK(homes(roomy)[0] + homes(roomy)[1] == roomy.hparams().layers);

  // The first device has room for nothing else, the second for nothing: no expert is on a device.
  Engine scarce(on_devices(ember(), 2, {roomy.footprint().devices[0].resident_bytes, 0}));
  CHECK(homes(scarce)[0] > 0);
  CHECK(homes(scarce)[1] == 0);
  check_same(scarce, want);

  EngineOptions losing = on_devices(ember(), 1, {4 * kMiB});
  losing.devices.host[0].lose_at = 60;
  Engine engine(losing);
  CHECK_FALSE(answer(engine).status.ok());
  check_same(engine, want);
}

TEST_CASE("attention of all layers is computed on two devices, with every kind of cache") {
  for (CacheType cache : {CacheType::F16, CacheType::Q8_0, CacheType::F32}) {
    CAPTURE(name(cache));
    EngineOptions cpu = on_cpu(ember(), cache == CacheType::F32), devices = on_devices(ember(), 2, {}, {.delay_us_max = 20}, cpu.exact);
    cpu.cache_type = devices.cache_type = cache;
    devices.devices.host[1].packed = true;
    Engine engine(devices);
    CHECK(attention_layers(engine) == engine.hparams().layers);
    for (const DeviceFootprint& device : engine.footprint().devices) {
      CHECK(device.attention_layers > 0);
      CHECK(device.kv_bytes > 0);
    }
    std::vector<f32> want = expected(cpu);
    for (int i = 0; i < 2; i++) check_same(engine, want);
    CHECK(attention_layers(engine) == engine.hparams().layers);
  }
}

// Of a run whose timeline was kept: work of this name on the device.
i64 spans_of(const Engine& engine, const std::string& lane, std::string_view what) {
  std::vector<std::string> lanes = engine.timeline()->lanes();
  i64 count = 0;
  for (const Timeline::Span& span : engine.timeline()->spans())
    count += span.what == what && lanes[static_cast<size_t>(span.lane)] == lane;
  return count;
}

i64 shared_layers(const Engine& engine) {
  i64 layers = 0;
  for (const DeviceFootprint& device : engine.footprint().devices) layers += device.shared_layers;
  return layers;
}

TEST_CASE("behind a long context two devices share a layer's heads, with every kind of cache and wherever that begins") {
  for (CacheType cache : {CacheType::F16, CacheType::Q8_0, CacheType::F32}) {
    CAPTURE(name(cache));
    EngineOptions cpu = on_cpu(ember(), cache == CacheType::F32), devices = on_devices(ember(), 2, {}, {.delay_us_max = 20}, cpu.exact);
    cpu.cache_type = devices.cache_type = cache;
    devices.timeline = true;
    std::vector<f32> want = expected(cpu);
    i64 most = 0;
    for (i64 from : {i64{0}, i64{1}, kPromptTokens + 6}) {
      CAPTURE(from);
      devices.split_heads = from;
      Engine engine(devices);
      const i64 layers = engine.hparams().layers;
      CHECK(shared_layers(engine) == (from > 0 ? layers : 0));
      // The second time over what the copies had before.
      for (int i = 0; i < 2; i++) check_same(engine, want);
      const i64 ops = spans_of(engine, "host:0", "attention") + spans_of(engine, "host:1", "attention");
      if (from == 0) most = ops;
      const i64 rows = from == 0 ? 0 : from == 1 ? kGenerated : kGenerated - 5;
      CHECK(ops == most + 2 * rows * layers);
    }
  }
}

TEST_CASE("a device that is lost with heads of another's layers takes no answer along but those that need its own") {
  std::vector<f32> want = expected(on_cpu(ember()));
  i64 lost = 0;
  for (i64 i = 0; i < test::lives(40); i++) {
    CAPTURE(i);
    EngineOptions options = on_devices(ember(), 2, {});
    options.split_heads = 2;
    options.devices.host[static_cast<size_t>(i % 2)].lose_at = 700 + 17 * i;
    Engine engine(options);
    Answer first = answer(engine);
    lost += !first.status.ok();
    CHECK(std::equal(first.logits.begin(), first.logits.end(), want.begin()));
    for (int again = 0; again < 2 && !answer(engine).status.ok(); again++) lost++;
    check_same(engine, want);
  }
  CHECK(lost > 0);
  CHECK(lost <= test::lives(40));
}

TEST_CASE("a copy of a cache is made only where experts keep as much, and where contexts can be so long") {
  EngineOptions options = on_devices(ember(), 2, {});
  options.split_heads = options.context + 1;
  CHECK(shared_layers(Engine(options)) == 0);
  options.split_heads = options.context;
  Engine whole(options);
  CHECK(shared_layers(whole) == whole.hparams().layers);
  std::vector<i64> scarce;  // nothing is left for experts
  for (const DeviceFootprint& device : whole.footprint().devices) scarce.push_back(device.resident_bytes + device.kv_bytes);
  options.vram_bytes = scarce;
  CHECK(shared_layers(Engine(options)) == 0);
  options.devices.host.resize(1);
  options.vram_bytes = {};
  CHECK(shared_layers(Engine(options)) == 0);
}

TEST_CASE("a layer's home chooses its experts: behind attention, or before the FFN where attention is the CPU's") {
  for (bool exact : {false, true}) {
    CAPTURE(exact);
    std::vector<f32> want = expected(on_cpu(ember(), exact));
    Engine all(on_devices(ember(), 2, {}, {}, exact));
    std::vector<i64> scarce;  // too little for attention of all layers, as the KV cache has no room
    for (const DeviceFootprint& device : all.footprint().devices) scarce.push_back(device.resident_bytes);
    for (const std::vector<i64>& vram : {std::vector<i64>{}, scarce}) {
      EngineOptions options = on_devices(ember(), 2, vram, {.delay_us_max = 20}, exact);
      options.timeline = true;
      Engine engine(options);
      check_same(engine, want);
      const i64 choices = (div_up(kPromptTokens, options.chunk) + kGenerated) * engine.hparams().moe_layers();
      i64 ops = 0;
      for (const char* device : {"host:0", "host:1"}) ops += spans_of(engine, device, "router");
      // Logits and their choice; behind attention the norm as well.
      bool attends = attention_layers(engine) == engine.hparams().layers;
      CHECK(attends == vram.empty());
      CHECK((attends ? ops == 3 * choices : ops >= 2 * choices && ops < 3 * choices));
    }
  }
}

TEST_CASE("a layer without shared experts has its router on a device all the same, and hears when it is lost there") {
  test::TinyModel whole;
  test::TempFolder folder;
  test::EditedModel model(whole.path());
  model.set("deepseek2.expert_shared_count", gguf_u32(0));
  std::string path = model.write(folder.file("unshared.gguf"));
  std::vector<f32> want = expected(on_cpu(path));
  i64 lost = 0;
  for (i64 i = 0; i < test::lives(20); i++) {
    CAPTURE(i);
    EngineOptions options = on_devices(path, 1, {50 * kKiB});  // for that alone
    options.devices.host[0].lose_at = 10 + 3 * i;
    Engine engine(options);
    lost += !answer(engine).status.ok();
    check_same(engine, want);
  }
  CHECK(lost > 0);
}

TEST_CASE("a device may be lost at any operation of a pass: it ends, and the CPU chooses and computes from then on") {
  test::TinyModel model;
  std::vector<f32> want = expected(on_cpu(model.path()));
  for (i64 kib : {600, 100000}) {  // attention of some layers, of all
    i64 lost = 0;
    for (i64 i = 0; i < test::lives(40); i++) {
      CAPTURE(i);
      EngineOptions options = on_devices(model.path(), 1, {kib * kKiB});
      options.devices.host[0].lose_at = 24 + 3 * i;
      Engine engine(options);
      Answer first = answer(engine);
      lost += !first.status.ok();
      CHECK(std::equal(first.logits.begin(), first.logits.end(), want.begin()));
      check_same(engine, want);
    }
    CHECK(lost > 0);
  }
}

TEST_CASE("the output head is computed where there is room for it, in parts, for one row and for more than go at a time") {
  for (bool exact : {false, true}) {
    CAPTURE(exact);
    EngineOptions cpu = on_cpu(ember(), exact);
    cpu.chunk = 48;  // of a text whose every row wants logits
    Engine whole(cpu);
    const i64 vocab = whole.hparams().vocab;
    const std::vector<i32> tokens = test::some_tokens(41, vocab, 5);
    const std::vector<f32> prompt = test::logits_of(whole, tokens, 48), want = answer(whole).logits;
    // Parts that are equal, unequal, and too small; in a card's order too.
    for (const std::vector<i64>& vram : std::vector<std::vector<i64>>{{kMiB, kMiB}, {kMiB, kMiB / 8, kMiB / 2}, {kMiB / 4, kMiB / 4}}) {
      CAPTURE(vram.size());
      EngineOptions options = on_devices(ember(), static_cast<i64>(vram.size()), vram, {}, exact);
      options.devices.host[0].packed = true;
      options.chunk = 48;
      Engine engine(options);
      CHECK(rows_of_the_head(engine) == (vram[0] == kMiB ? vocab : 0));
      CHECK(test::difference(test::logits_of(engine, tokens, 48), prompt, vocab) == "");
      check_same(engine, want);
    }
  }
}

TEST_CASE("a device that is lost while it computes the head ends the pass, and the CPU computes its part from then on") {
  std::vector<f32> want = expected(on_cpu(ember()));
  i64 vocab = 0, lost_at_the_head = 0;
  // Nothing but a part of the head is there, so that it is lost in one: three operations for each of them.
  for (i64 lose_at : {14, 25, 36}) {
    CAPTURE(lose_at);
    EngineOptions options = on_devices(ember(), 2, {kMiB / 2, kMiB / 2});
    options.devices.host[1].lose_at = lose_at;
    Engine engine(options);
    vocab = engine.hparams().vocab;
    REQUIRE(rows_of_the_head(engine) == vocab);
    Answer first = answer(engine);
    lost_at_the_head += !first.status.ok();
    CHECK(std::equal(first.logits.begin(), first.logits.end(), want.begin()));
    if (!first.status.ok()) CHECK(first.status.message().find("host:1: the device is lost") == 0);
    check_same(engine, want);
  }
  CHECK(lost_at_the_head > 0);
}

TEST_CASE("a part of the head is what the file has, however many pieces it is read in") {
  test::TempFolder folder;
  const std::string path = many_words(folder);
  std::vector<f32> want = expected(on_cpu(path));
  EngineOptions options = on_devices(path, 1, {});
  for (bool packed : {false, true}) {
    CAPTURE(packed);
    options.devices.host[0].packed = packed;
    Engine engine(options);
    CHECK(rows_of_the_head(engine) == 6 * 4096);
    check_same(engine, want);
  }
}

TEST_CASE("RAM has no copy of what devices are home of, until they are lost") {
  std::vector<f32> want = expected(on_cpu(ember()));
  const i64 all = Engine(on_cpu(ember())).footprint().resident_bytes;
  EngineOptions options = on_devices(ember(), 2, {});
  options.devices.host[1].lose_at = 700;
  Engine engine(options);
  i64 there = 0;
  for (const DeviceFootprint& device : engine.footprint().devices) there += device.resident_bytes;
  CHECK(attention_layers(engine) == engine.hparams().layers);
  const i64 before = engine.footprint().resident_bytes;
  CHECK(before < all - there + 2 * kMiB);  // buffers are whole huge pages
  CHECK_FALSE(answer(engine).status.ok());
  CHECK(engine.footprint().resident_bytes == before);
  check_same(engine, want);
  CHECK(engine.footprint().resident_bytes > before);
  CHECK(engine.footprint().resident_bytes < all);
  const std::vector<DeviceFootprint> now = engine.footprint().devices;
  CHECK_FALSE(now[0].lost);
  CHECK(now[0].resident_bytes > 0);
  CHECK(now[1].lost);
  CHECK(now[1].id == "host:1");
  for (i64 left : {now[1].resident_bytes, now[1].kv_bytes, now[1].expert_bytes, now[1].expert_slots, now[1].attention_layers})
    CHECK(left == 0);
}

TEST_CASE("while what a lost device had cannot be read again, requests end with what is missing; then they go on") {
  test::TempFolder folder;
  const std::string path = folder.file("model.gguf");
  std::filesystem::copy_file(ember(), path);
  std::vector<f32> want = expected(on_cpu(path));
  EngineOptions options = on_devices(path, 2, {});
  options.devices.host[0].lose_at = 700;
  Engine engine(options);
  CHECK_FALSE(answer(engine).status.ok());
  std::filesystem::resize_file(path, 1000);
  for (int i = 0; i < 2; i++) {
    const Status status = answer(engine).status;
    REQUIRE_FALSE(status.ok());
    CHECK(status.message().find("host:0 is lost, and the weights that only it had ") == 0);
    CHECK(status.message().find("cannot be read into RAM: " + path + ": cannot read tensor 'blk.") != std::string::npos);
    CHECK(status.message().find("the file ends there") != std::string::npos);
  }
  std::filesystem::copy_file(ember(), path, std::filesystem::copy_options::overwrite_existing);
  check_same(engine, want);
}

// Sanitizers need memory of their own as they go.
TEST_CASE("without any memory for what a lost device had, requests end with what is missing; with some they go on" *
          doctest::skip(test::lives(20) == 1)) {
  std::vector<f32> want = expected(on_cpu(ember()));
  EngineOptions options = on_devices(ember(), 2, {});
  options.devices.host[0].lose_at = 700;
  i64 failed = 0;
  constexpr i64 kLives = 12;
  for (i64 life = 0; life < kLives; life++) {  // from nothing at all to nearly enough
    CAPTURE(life);
    Engine engine(options);
    std::vector<f32> logits(static_cast<size_t>(engine.hparams().vocab));
    CHECK_FALSE(answer(engine).status.ok());
    engine.sequence(SequenceId(0)).truncate(0);
    const std::vector<BatchRow> row{{SequenceId(0), 0, 1, true, RowRole::prompt}};
    for (int request = 0; request < 2; request++) {
      Status status;
      {
        LeftMemory left(life * kMiB);
        status = engine.forward(row, logits);
      }
      if (status.ok()) break;
      failed++;
      CHECK(status.message().find("host:0 is lost, and the weights that only it had cannot be read into RAM: ") == 0);
    }
    check_same(engine, want);
  }
  CHECK(failed > kLives / 2);
}

TEST_CASE("KV cache and attention's weights are counted: what has no room stays with the CPU") {
  std::vector<f32> want = expected(on_cpu(ember()));
  Engine all(on_devices(ember(), 1, {}));
  DeviceFootprint whole = all.footprint().devices[0];
  for (i64 missing : {i64{1}, whole.kv_bytes}) {
    Engine engine(on_devices(ember(), 1, {whole.resident_bytes + whole.kv_bytes - missing}));
    DeviceFootprint device = engine.footprint().devices[0];
    CHECK(device.attention_layers > 0);
    CHECK(device.attention_layers < engine.hparams().layers);
    CHECK(device.home_layers == engine.hparams().layers);
    CHECK(device.resident_bytes + device.kv_bytes + device.expert_bytes <= whole.resident_bytes + whole.kv_bytes - missing);
    check_same(engine, want);
  }
}

TEST_CASE("a sequence goes on with the same bits after a device was lost in the middle of it, from the CPU's copy of its cache") {
  std::vector<f32> want = expected(on_cpu(ember()));
  i64 lost = 0;
  for (i64 lose_at : {700, 1500, 2300}) {
    CAPTURE(lose_at);
    EngineOptions options = on_devices(ember(), 2, {});
    options.devices.host[0].lose_at = lose_at;
    Engine engine(options);
    i64 vocab = engine.hparams().vocab, done = 0;
    for (int attempt = 0; attempt < 2; attempt++) {
      Answer got = answer_from(engine, done);
      std::span<const f32> rest = logits_from(want, done, vocab);
      CHECK(std::equal(got.logits.begin(), got.logits.end(), rest.begin()));
      done += static_cast<i64>(got.logits.size()) / vocab;
      lost += !got.status.ok() && done > 0;
    }
    CHECK(done == kPromptTokens + kGenerated);
  }
  CHECK(lost > 0);
}

TEST_CASE("a cache that was saved, written over and restored is what devices go on with") {
  test::TempFolder folder;
  std::string path = folder.file("a.slot");
  std::vector<f32> want = expected(on_cpu(ember()));
  EngineOptions options = on_devices(ember(), 2, {});
  options.split_heads = 10;
  Engine engine(options);
  KvCache& cache = engine.sequence(SequenceId(0));
  i64 vocab = engine.hparams().vocab, layers = engine.hparams().layers;
  REQUIRE(answer(engine).status.ok());
  cache.truncate(kPromptTokens + 3);
  save_slot(path, 1, layers, test::some_tokens(kPromptTokens + 3, vocab, 1), cache);
  REQUIRE(answer(engine, 2).status.ok());
  restore_slot(path, 1, layers, vocab, cache);
  Answer got = answer_from(engine, kPromptTokens + 3);
  REQUIRE(got.status.ok());
  CHECK(std::ranges::equal(got.logits, logits_from(want, kPromptTokens + 3, vocab)));
}

TEST_CASE("neither do exchanges under pressure: little RAM, little VRAM, late copies") {
  std::vector<f32> want = expected(on_cpu(ember()));
  EngineOptions options = on_devices(ember(), 2, {4 * kMiB, 2 * kMiB}, {.delay_us_max = 100});
  options.ram_bytes = 4 * kMiB;
  Engine engine(options);
  for (int i = 0; i < 2; i++) check_same(engine, want);
  CHECK(engine.scheduler_stats().device_hits > 0);
  CHECK(engine.scheduler_stats().promotions > 0);
  CHECK(engine.scheduler_stats().downloaded_bytes > 0);
}

TEST_CASE("nor that devices keep experts in a card's order, computing there and coming back from it") {
  for (bool exact : {false, true}) {
    CAPTURE(exact);
    std::vector<f32> want = expected(on_cpu(ember(), exact));
    EngineOptions options = on_devices(ember(), 2, {4 * kMiB, 2 * kMiB}, {.delay_us_max = 100, .packed = true}, exact);
    options.devices.host[1].packed = exact;  // the other time one of each kind
    options.ram_bytes = 5 * kMiB;
    Engine engine(options);
    for (int i = 0; i < 2; i++) check_same(engine, want);
    CHECK(engine.scheduler_stats().device_hits > 0);
    CHECK(engine.scheduler_stats().downloaded_bytes > 0);
  }
}

TEST_CASE("nor that rows do not fill the tiles of that order") {
  test::TempFolder folder;
  std::string path = narrow_model(folder);
  std::vector<f32> want = expected(on_cpu(path));
  EngineOptions options = on_devices(path, 2, {kMiB / 4, kMiB / 8}, {.packed = true});
  options.ram_bytes = kMiB;
  Engine engine(options);
  for (int i = 0; i < 2; i++) check_same(engine, want);
  CHECK(engine.scheduler_stats().device_hits > 0);
}

TEST_CASE("all kinds of models of ../shared say the same on two devices of unequal budgets") {
  for (std::string name : {"v3", "v3-mla", "k2", "v3-groups", "v2-lite", "v3-mixed", "ember-37m-q2_k"}) {
    CAPTURE(name);
    std::string path = test::shared_file("models/" + name + ".gguf");
    if (path.empty()) return;
    std::vector<f32> want = expected(on_cpu(path));
    EngineOptions options = on_devices(path, 2, {8 * kMiB, 2 * kMiB}, {.delay_us_max = 50});
    options.devices.host[0].packed = true;
    Engine engine(options);
    check_same(engine, want);
    CHECK(engine.scheduler_stats().device_hits > 0);
  }
}

TEST_CASE("eight neighbours in a batch have the bits of one alone") {
  std::vector<f32> want = expected(on_cpu(ember()));
  EngineOptions options = on_devices(ember(), 2, {3 * kMiB});
  options.sequences = 8;
  options.split_heads = kPromptTokens + 4;
  Engine engine(options);
  i64 vocab = engine.hparams().vocab;
  std::vector<i32> tokens = test::some_tokens(kPromptTokens + kGenerated, vocab, 1);
  for (i64 s = 0; s < 8; s++) {
    engine.sequence(SequenceId(s)).truncate(0);
    for (i64 at = 0; at < kPromptTokens; at += 8) {
      std::vector<BatchRow> rows;
      for (i64 i = at; i < at + 8; i++)
        rows.push_back({SequenceId(s), static_cast<i32>(i), tokens[static_cast<size_t>(i)], false, RowRole::prompt});
      REQUIRE(engine.forward(rows, {}).ok());
    }
  }
  std::vector<f32> logits(static_cast<size_t>(8 * vocab));
  for (i64 at = kPromptTokens; at < kPromptTokens + kGenerated; at++) {
    std::vector<BatchRow> rows;
    for (i64 s = 0; s < 8; s++)
      rows.push_back({SequenceId(s), static_cast<i32>(at), tokens[static_cast<size_t>(at)], true, RowRole::generated});
    REQUIRE(engine.forward(rows, logits).ok());
    std::span<const f32> alone = std::span(want).subspan(static_cast<size_t>(at * vocab), static_cast<size_t>(vocab));
    for (i64 s = 0; s < 8; s++)
      CHECK(std::equal(alone.begin(), alone.end(), logits.begin() + static_cast<std::ptrdiff_t>(s * vocab)));
  }
  CHECK(engine.scheduler_stats().device_hits > 0);
}

TEST_CASE("a lost device ends what runs with a message, and the same engine then answers rightly without it") {
  std::vector<f32> want = expected(on_cpu(ember()));
  EngineOptions options = on_devices(ember(), 2, {3 * kMiB});
  options.devices.host[0].lose_at = 2500;
  Engine engine(options);
  Answer first;
  for (int i = 0; i < 50 && first.status.ok(); i++) first = answer(engine);
  REQUIRE_FALSE(first.status.ok());
  CHECK(first.status.message() == "host:0: the device is lost; its experts are computed elsewhere from now on");
  CHECK(std::equal(first.logits.begin(), first.logits.end(), want.begin()));
  i64 hits = engine.scheduler_stats().device_hits;
  check_same(engine, want);
  CHECK(engine.footprint().devices[0].experts == 0);
  CHECK(engine.footprint().devices[1].experts > 0);
  CHECK(engine.scheduler_stats().device_hits > hits);
}

TEST_CASE("a device without room is refused, with what to change") {
  auto message = [](const EngineOptions& options) -> std::string {
    try {
      Engine engine(options);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  CHECK(message(on_devices(ember(), 1, {kGiB}, {.vram_bytes = 8 * kMiB})).find("a smaller --vram") != std::string::npos);
  CHECK(message(on_devices(ember(), 1, {}, {.fail_allocation = 3})).find("host:0: no ") != std::string::npos);
  CHECK(message(on_devices(ember(), 2, {kMiB, kMiB, kMiB})).find("--vram names 3 sizes for 2 devices") == 0);
}

TEST_CASE("budgets, delays and failures by chance: no wrong logit, and every failure ends well") {
  test::TinyModel model;
  std::vector<f32> want = expected(on_cpu(model.path()));
  test::Watchdog watchdog(120);
  i64 vocab = 0, failures = 0;
  for (u64 seed = 1; seed <= static_cast<u64>(test::lives(200)); seed++) {
    CAPTURE(seed);
    watchdog.begin(seed);
    Rng rng(seed);
    std::vector<i64> vram;
    i64 count = 1 + rng.below(3);
    for (i64 d = 0; d < count; d++) vram.push_back(rng.below(2 * kMiB));
    EngineOptions options = on_devices(model.path(), count, vram, {.vram_bytes = 8 * kMiB, .delay_us_max = rng.below(2) * rng.below(30)});
    options.ram_bytes = kMiB + rng.below(2 * kMiB);
    options.chunk = 4 + rng.below(20);
    options.split_heads = rng.below(2) * (1 + rng.below(kPromptTokens + kGenerated));
    for (size_t d = 0; d < options.devices.host.size(); d++) {
      HostDeviceOptions& device = options.devices.host[d];
      device.seed = seed * 10 + d;
      device.packed = rng.below(2) == 0;
      if (rng.below(3) == 0) device.lose_at = 20 + rng.below(500);
      if (rng.below(3) == 0) device.fail_copy = 20 + rng.below(500);
    }
    Engine engine(options);
    vocab = engine.hparams().vocab;
    i64 ended = 0;
    for (int i = 0; i < 4; i++) {
      Answer got = answer(engine);
      ended += !got.status.ok();
      std::vector<f32> begun(want.begin(), want.begin() + static_cast<std::ptrdiff_t>(got.logits.size()));
      CHECK(test::difference(got.logits, begun, vocab) == "");
    }
    CHECK(ended <= count);
    failures += ended;
  }
  CHECK(failures > 0);
}

}  // namespace stoker
