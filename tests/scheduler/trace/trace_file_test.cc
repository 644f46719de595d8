#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>

#include "kernels/base/rng.h"
#include "scheduler/trace/trace_reader.h"
#include "scheduler/trace/trace_writer.h"
#include "tests/scheduler/model_file/raw_gguf.h"
#include "tests/support/hand_clock.h"
#include "tests/support/temp_folder.h"

namespace stoker {
namespace {

using test::TempFolder;
using test::error_of;
using test::read_all;

TraceHeader small_header(i64 experts = 256, bool served = false, bool detailed = false) {
  TraceHeader h{.model_name = "small", .layers = 3, .first_layer = 1, .experts = experts, .top_k = 4, .groups = 4,
                .groups_used = 2, .has_served = served, .has_stalls = detailed, .guesses = detailed ? 6 : 0};
  h.model_hash = trace_model_hash(h);
  return h;
}

TraceRecord random_record(const TraceHeader& h, Rng& rng, i64 position) {
  TraceRecord r{.sequence = 7, .position = position, .token = rng.below(1000),
                .phase = position < 2 ? TracePhase::prompt : TracePhase::decode,
                .ids = {}, .weights = {}, .served = {}, .scores = {}};
  r.resize(h);
  for (u16& id : r.ids) id = static_cast<u16>(rng.below(h.experts));
  for (f32& w : r.weights) w = static_cast<f32>(rng.below(1024)) / 1024;  // exact in f16
  for (u8& s : r.served) s = static_cast<u8>(rng.below(h.has_stalls ? 4 : 2));
  for (u16& s : r.stalls) s = static_cast<u16>(rng.below(65536));
  for (u16& g : r.guesses) g = static_cast<u16>(rng.below(h.experts));
  for (f32& l : r.likelihoods) l = static_cast<f32>(rng.below(1024)) / 1024;
  return r;
}

std::vector<TraceRecord> write_some(const std::string& path, const TraceHeader& h, i64 count) {
  Rng rng(5);
  std::vector<TraceRecord> records;
  TraceWriter writer(path, h);
  for (i64 i = 0; i < count; i++) {
    records.push_back(random_record(h, rng, i));
    REQUIRE(writer.append(records.back()).ok());
  }
  return records;
}

void check_equal(const TraceRecord& got, const TraceRecord& want) {
  CHECK(got.sequence == want.sequence);
  CHECK(got.position == want.position);
  CHECK(got.token == want.token);
  CHECK(got.phase == want.phase);
  CHECK(got.ids == want.ids);
  CHECK(got.weights == want.weights);
  CHECK(got.served == want.served);
  CHECK(got.stalls == want.stalls);
  CHECK(got.guesses == want.guesses);
  CHECK(got.likelihoods == want.likelihoods);
}

}  // namespace

TEST_CASE("records come back as they were written, narrow and wide ids, with and without served and all details") {
  TempFolder folder;
  for (i64 experts : {256, 260, 384})
    for (int more : {0, 1, 2}) {
      TraceHeader h = small_header(experts, more > 0, more > 1);
      std::vector<TraceRecord> want = write_some(folder.file("t"), h, 20);
      TraceReader reader(folder.file("t"));
      CHECK(reader.records() == 20);
      CHECK(reader.cut_bytes() == 0);
      CHECK(reader.header().model_name == "small");
      CHECK(reader.header().model_hash == h.model_hash);
      CHECK(reader.header().groups_used == 2);
      TraceRecord got;
      for (const TraceRecord& record : want) {
        REQUIRE(reader.next(got));
        check_equal(got, record);
      }
      CHECK_FALSE(reader.next(got));
      reader.seek(13);
      REQUIRE(reader.next(got));
      check_equal(got, want[13]);
    }
}

TEST_CASE("details make a file of version 2, without them it is one of version 1") {
  std::string plain = encode_trace_header(small_header(256, true)), detailed = encode_trace_header(small_header(256, true, true));
  CHECK(plain[8] == 1);
  CHECK(detailed[8] == 2);
  CHECK(decode_trace_header(plain, "t").has_served);
  CHECK_FALSE(decode_trace_header(plain, "t").has_stalls);
  CHECK(decode_trace_header(detailed, "t").guesses == 6);
  // Version 1 has no such records.
  std::string mixed = detailed;
  mixed[8] = 1;
  CHECK(error_of([&] { decode_trace_header(mixed, "t"); }).find("do not fit the shape") != std::string::npos);
  mixed[8] = 3;
  CHECK(error_of([&] { decode_trace_header(mixed, "t"); }).find("versions 1 to 2") != std::string::npos);
}

TEST_CASE("a token of DeepSeek-V3 takes 1408 bytes") {
  TraceHeader h{.model_name = "v3", .layers = 58, .first_layer = 3, .experts = 256, .top_k = 8, .groups = 8, .groups_used = 4};
  CHECK(h.record_bytes() == 1408);
}

TEST_CASE("a file that is cut anywhere reads up to its last whole record") {
  TempFolder folder;
  TraceHeader h = small_header();
  std::vector<TraceRecord> want = write_some(folder.file("t"), h, 3);
  std::string bytes = read_all(folder.file("t"));
  REQUIRE(static_cast<i64>(bytes.size()) == kTraceHeaderBytes + 3 * h.record_bytes());
  for (size_t size = 0; size < bytes.size(); size++) {
    std::string path = folder.write("cut", std::string_view(bytes).substr(0, size));
    if (static_cast<i64>(size) < kTraceHeaderBytes) {
      CHECK(error_of([&] { TraceReader reader(path); }).find("within the header") != std::string::npos);
      continue;
    }
    TraceReader reader(path);
    i64 whole = (static_cast<i64>(size) - kTraceHeaderBytes) / h.record_bytes();
    REQUIRE(reader.records() == whole);
    TraceRecord got;
    for (i64 i = 0; i < whole; i++) {
      REQUIRE(reader.next(got));
      CHECK(got.ids == want[static_cast<size_t>(i)].ids);
    }
    CHECK_FALSE(reader.next(got));
  }
}

TEST_CASE("bad files are named with what is wrong") {
  TempFolder folder;
  TraceHeader h = small_header(200);
  write_some(folder.file("t"), h, 2);
  std::string bytes = read_all(folder.file("t"));
  auto error_with = [&](size_t at, char value) {
    std::string changed = bytes;
    changed[at] = value;
    std::string path = folder.write("bad", changed);
    return error_of([&] {
      TraceReader reader(path);
      for (TraceRecord record; reader.next(record);) {}
    });
  };
  CHECK(error_of([&] { TraceReader reader(folder.file("none")); }).find("cannot open") != std::string::npos);
  CHECK(error_of([&] { TraceReader reader(folder.file(".")); }).find("a trace is a file") != std::string::npos);
  CHECK(error_with(0, 'G').find("not a routing trace") != std::string::npos);
  CHECK(error_with(8, 9).find("version 9; this program reads versions 1 to 2") != std::string::npos);
  CHECK(error_with(24, 0).find("no router has 0 layers") != std::string::npos);
  CHECK(error_with(36, 5).find("do not fit the shape") != std::string::npos);
  CHECK(error_with(48, 8).find("do not fit the shape") != std::string::npos);
  CHECK(error_with(kTraceHeaderBytes + 12, 3).find("record 0 has phase 3") != std::string::npos);
  CHECK(error_with(kTraceHeaderBytes + 16 + 5, static_cast<char>(201)).find("record 0 names expert 201 of layer 2, which has 200") !=
        std::string::npos);
}

TEST_CASE("only a trace is replaced") {
  TempFolder folder;
  write_some(folder.file("t"), small_header(), 5);
  write_some(folder.file("t"), small_header(), 2);
  CHECK(TraceReader(folder.file("t")).records() == 2);
  std::string model = folder.write("model.gguf", "GGUF and more");
  CHECK(error_of([&] { TraceWriter writer(model, small_header()); }).find("is no trace") != std::string::npos);
  CHECK(read_all(model) == "GGUF and more");
}

TEST_CASE("what is written reaches the file within a second") {
  TempFolder folder;
  test::HandClock clock;
  TraceHeader h = small_header();
  TraceWriter writer(folder.file("t"), h, clock);
  Rng rng(1);
  auto in_file = [&] { return TraceReader(folder.file("t")).records(); };
  REQUIRE(writer.append(random_record(h, rng, 0)).ok());
  CHECK(in_file() == 0);
  clock.ns = 1'000'000'000;
  REQUIRE(writer.append(random_record(h, rng, 1)).ok());
  CHECK(in_file() == 2);
  REQUIRE(writer.append(random_record(h, rng, 2)).ok());
  REQUIRE(writer.flush().ok());
  CHECK(in_file() == 3);
}

TEST_CASE("a full disk is told") {
  if (!std::filesystem::exists("/dev/full")) return;
  CHECK(error_of([] { TraceWriter writer("/dev/full", small_header()); }).find("No space left") != std::string::npos);
}

}  // namespace stoker
