#include "scheduler/trace/text_import.h"

#include <doctest/doctest.h>

#include "scheduler/trace/text_export.h"
#include "tests/scheduler/model_file/raw_gguf.h"
#include "tests/support/shared_data.h"
#include "tests/support/temp_folder.h"

namespace stoker {
namespace {

using test::TempFolder;
using test::error_of;

struct Collected {
  TraceHeader header;
  std::vector<TraceRecord> records;
  TraceSink sink() {
    return {.open = [this](const TraceHeader& h) { header = h; },
            .record = [this](const TraceRecord& r) { records.push_back(r); }};
  }
};

}  // namespace

TEST_CASE("CSV: ranks, layers, phases and what was read; tokens that lack a layer are left out") {
  TempFolder folder;
  std::string path = folder.write("a.csv",
                                  "# model=x n_expert=16 n_expert_used=2\nturn,phase,step,layer,slot,expert,weight,residency,expert_bytes\n"
                                  "0,0,0,2,0,5,0.75,0,100\n0,0,0,2,1,6,0.25,0,0\n"
                                  "0,0,1,2,0,5,1,0,0\n0,0,1,2,1,6,1,0,0\n"  // no layer 3
                                  "0,0,0,3,0,7,0.5,0,100\n0,0,0,3,1,8,0.5,0,100\n"  // a prompt's come layer by layer
                                  "0,1,0,2,0,1,0.5,0,0\n0,1,0,2,1,2,0.5,0,0\n0,1,0,3,0,3,0.5,0,0\n0,1,0,3,1,15,0.5,0,9\n");
  Collected got;
  TraceImport result = import_csv(path, got.sink());
  CHECK(result.records == 2);
  CHECK(result.incomplete == 1);
  CHECK(got.header.layers == 2);
  CHECK(got.header.first_layer == 2);
  CHECK(got.header.experts == 16);
  CHECK(got.header.top_k == 2);
  REQUIRE(got.records.size() == 2);
  CHECK(got.records[0].ids == std::vector<u16>{5, 6, 7, 8});
  CHECK(got.records[0].weights == std::vector<f32>{0.75f, 0.25f, 0.5f, 0.5f});
  CHECK(got.records[0].served == std::vector<u8>{0, 1, 0, 0});
  CHECK(got.records[0].phase == TracePhase::prompt);
  CHECK(got.records[1].ids == std::vector<u16>{1, 2, 3, 15});
  CHECK(got.records[1].phase == TracePhase::decode);
  CHECK(got.records[1].position == 2);
}

TEST_CASE("CSV: what is exported is imported again") {
  TraceHeader h{.model_name = "m", .layers = 2, .first_layer = 1, .experts = 300, .top_k = 2};
  TraceRecord r{.sequence = 1, .position = 0, .token = 42, .phase = TracePhase::decode, .ids = {1, 299, 3, 4},
                .weights = {0.75f, 0.25f, 0.5f, 0.5f}, .served = {}, .scores = {}};
  std::string text = csv_heading(h);
  append_csv(h, r, text);
  TempFolder folder;
  Collected got;
  import_csv(folder.write("a.csv", text), got.sink());
  CHECK(got.header.experts == 300);
  REQUIRE(got.records.size() == 1);
  CHECK(got.records[0].ids == r.ids);
  CHECK(got.records[0].weights == r.weights);
  std::string json;
  append_json(h, r, json);
  CHECK(json == "{\"sequence\":1,\"position\":0,\"token\":42,\"phase\":\"decode\",\"first_layer\":1,"
                "\"experts\":[[1,299],[3,4]],\"weights\":[[0.75,0.25],[0.5,0.5]]}\n");
}

TEST_CASE("CSV: mistakes are named with their line") {
  TempFolder folder;
  Collected got;
  auto error = [&](std::string_view text) { return error_of([&] { import_csv(folder.write("a.csv", text), got.sink()); }); };
  CHECK(error("").find("no header line") != std::string::npos);
  CHECK(error("a,b\n").find("line 1: the columns must begin") != std::string::npos);
  std::string head = "turn,phase,step,layer,slot,expert,weight\n";
  CHECK(error(head).find("no line after the header") != std::string::npos);
  CHECK(error(head + "0,0,0,0,0,x,1\n").find("line 2: column 6") != std::string::npos);
  CHECK(error(head + "0,0,0,0,0\n").find("line 2: column 6") != std::string::npos);
  CHECK(error(head + "0,0,0,-1,0,1,1\n").find("line 2: -1 is out of range") != std::string::npos);
  CHECK(error("# n_expert=4\n" + head + "0,0,0,0,0,4,1\n").find("expert 4 of n_expert=4") != std::string::npos);
}

TEST_CASE("ESFT: one file per layer, ids then weights; ranks by weight") {
  TempFolder folder;
  folder.write("expert_weights_1.txt", "1\t2\t3\t4\t\t0.1\t0.2\t0.4\t0.3\n5\t6\t\t0.5\t0.4\n");
  folder.write("expert_weights_2.txt", "7\t8\t9\t0\t\t0.2\t0.1\t0.3\t0.4\n1\t2\t\t0.5\t0.4\n");
  std::string path = folder.file("");
  Collected got;
  TraceImport result = import_esft(path, 2, 10, got.sink());
  CHECK(result.records == 3);
  CHECK(got.header.layers == 2);
  CHECK(got.header.first_layer == 1);
  REQUIRE(got.records.size() == 3);
  CHECK(got.records[0].ids == std::vector<u16>{2, 1, 7, 8});
  CHECK(got.records[1].ids == std::vector<u16>{3, 4, 0, 9});
  CHECK(got.records[1].position == 1);
  CHECK(got.records[2].sequence == 1);
  CHECK(error_of([&] { import_esft(path, 2, 9, got.sink()); }).find("is no expert of 9") != std::string::npos);
  CHECK(error_of([&] { import_esft(path, 3, 10, got.sink()); }).find("line 1: must be ids, 3 per token") != std::string::npos);
  folder.write("expert_weights_4.txt", "");
  CHECK(error_of([&] { import_esft(path, 2, 10, got.sink()); }).find("4 comes after 2") != std::string::npos);
}

TEST_CASE("real traces of other programs are read") {
  for (const char* name : {"data/routing/others/qwen.route.csv.gz", "data/routing/others/gptoss.route.csv.gz"}) {
    std::string path = test::shared_file(name);
    if (path.empty()) continue;
    Collected got;
    TraceImport result = import_csv(path, got.sink());
    CHECK(got.header.experts == 128);
    CHECK(result.records >= 65);
    CHECK(got.header.has_served);
  }
}

}  // namespace stoker
