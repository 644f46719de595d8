// stoker trace: what is in a routing trace, what it says about caches, other forms of it, and made-up ones.
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"
#include "runtime/interrupted.h"
#include "scheduler/popularity_file.h"
#include "scheduler/trace/synthetic_routing.h"
#include "scheduler/trace/text_export.h"
#include "scheduler/trace/text_import.h"
#include "scheduler/trace/trace_reader.h"
#include "scheduler/trace/trace_stats.h"
#include "scheduler/trace/trace_writer.h"
#include "tools/commands.h"
#include "tools/interrupt.h"
#include "tools/terminal.h"
#include "tools/text_file.h"
#include "tools/trace_plots.h"
#include "tools/trace_popularity.h"

namespace stoker {

namespace {

void append_or_throw(TraceWriter& writer, const TraceRecord& record) {
  if (interrupt_flag().load()) throw Interrupted();
  Status status = writer.append(record);
  if (!status.ok()) throw Error(status.message());
}

void finish(TraceWriter& writer) {
  Status status = writer.flush();
  if (!status.ok()) throw Error(status.message());
  print(fmt::format("{}: {} tokens, {} layers, {} of {} experts\n", writer.path(), writer.records(),
                    writer.header().layers, writer.header().top_k, writer.header().experts));
}

nlohmann::ordered_json header_json(const TraceHeader& h) {
  return {{"model", h.model_name},
          {"model_hash", fmt::format("{:016x}", h.model_hash)},
          {"moe_layers", h.layers},
          {"first_moe_layer", h.first_layer},
          {"experts", h.experts},
          {"experts_per_token", h.top_k},
          {"expert_groups", h.groups},
          {"expert_groups_used", h.groups_used},
          {"has_served", h.has_served},
          {"has_stalls", h.has_stalls},
          {"guesses", h.guesses},
          {"record_bytes", h.record_bytes()}};
}

int info(const Options& o) {
  TraceReader reader(o.positional[1]);
  const TraceHeader& h = reader.header();
  if (o.json) {
    nlohmann::ordered_json json = header_json(h);
    json["tokens"] = reader.records();
    json["cut_bytes"] = reader.cut_bytes();
    print(json.dump(2) + "\n");
    return 0;
  }
  print(fmt::format("model    {} ({:016x})\nrouter   {} layers from {}, {} of {} experts, best {} of {} groups\n"
                    "tokens   {}, {} each, {} in all{}\n",
                    h.model_name, h.model_hash, h.layers, h.first_layer, h.top_k, h.experts, h.groups_used, h.groups,
                    reader.records(), human_bytes(h.record_bytes()), human_bytes(reader.file_bytes()),
                    h.has_stalls ? "; where experts were, waits and guesses are noted" : h.has_served ? "; what was in memory is noted" : ""));
  if (reader.cut_bytes() > 0) note("the file ends within a record: its last {} bytes are left out", reader.cut_bytes());
  return 0;
}

nlohmann::ordered_json stats_json(const RoutingStats& s) {
  nlohmann::ordered_json json;
  for (size_t i = 0; i < kTopPercents.size(); i++) json[fmt::format("top_{}_percent_share", kTopPercents[i])] = s.top_share[i];
  for (size_t i = 0; i < kReuseLags.size(); i++) json[fmt::format("lag_{}_reuse", kReuseLags[i])] = s.reuse[i];
  json["lru_hit_rate"] = s.lru;
  json["belady_hit_rate"] = s.belady;
  json["experts_used"] = s.used;
  json["stall_ms"] = s.stall_ms;
  json["foreseen"] = s.foreseen;
  return json;
}

std::string stats_line(std::string_view name, const RoutingStats& s, bool detailed) {
  std::string line = fmt::format("{:>6}", name);
  for (f64 share : s.top_share) line += fmt::format("{:>6.1f}", 100 * share);
  line += "  ";
  for (f64 reuse : s.reuse) line += fmt::format("{:>6.1f}", 100 * reuse);
  line += fmt::format("  {:>6.1f}{:>8.1f}{:>7.0f}", 100 * s.lru, 100 * s.belady, s.used);
  return line + (detailed ? fmt::format("{:>10.2f}{:>10.1f}\n", s.stall_ms, 100 * s.foreseen) : "\n");
}

std::string stats_text(const TraceHeader& h, const TraceStats& stats) {
  std::string text = fmt::format("{}: {} tokens ({} of prompts), {} sequences\n\n", h.model_name, stats.records,
                                 stats.prompt_records, stats.sequences);
  text += fmt::format(
      "        share of hottest        used by the token before    hits, {} slots{}\n"
      " layer  10 %  20 %  30 %  50 %       1     4    16    64     LRU  Belady   used{}\n",
      stats.slots, h.has_stalls ? "                 waited   guessed" : "", h.has_stalls ? "  ms/token  right, %" : "");
  for (size_t i = 0; i < stats.layers.size(); i++)
    text += stats_line(fmt::format("{}", h.first_layer + static_cast<i64>(i)), stats.layers[i], h.has_stalls);
  text += stats_line("all", stats.mean, h.has_stalls) + "\ngate weight by rank, %:";
  for (f64 share : stats.rank_shares) text += fmt::format(" {:.1f}", 100 * share);
  if (h.has_stalls)
    text += fmt::format("\nwhen asked for: in RAM {:.1f} %, on devices {:.1f} %, on their way {:.1f} %, on disk {:.1f} %", 100 * stats.tiers[1],
                        100 * stats.tiers[2], 100 * stats.tiers[3], 100 * stats.tiers[0]);
  else if (h.has_served)
    text += fmt::format("\nin memory when asked for: {:.1f} %", 100 * stats.served);
  return text + "\n";
}

void draw(const Options& o, i64 slots) {
  TraceReader reader(o.positional[1]);
  RoutingTrace trace = read_routing_trace(reader);
  if (!o.plot.empty()) write_text_file(o.plot, svg(hit_rate_chart(trace)));
  if (!o.plot_residency.empty())
    write_text_file(o.plot_residency, svg(residency_map(trace, reader.header().first_layer, slots)));
}

int stats(const Options& o) {
  TraceReader reader(o.positional[1]);
  const TraceHeader& h = reader.header();
  i64 slots = o.cache_slots > 0 ? o.cache_slots : std::max(h.top_k, h.experts / 32);
  TraceStats stats = measure_trace(reader, slots);
  if (!o.plot.empty() || !o.plot_residency.empty()) draw(o, slots);
  if (!o.json) {
    print(stats_text(h, stats));
    return 0;
  }
  nlohmann::ordered_json json = header_json(h);
  json.update({{"tokens", stats.records}, {"prompt_tokens", stats.prompt_records}, {"sequences", stats.sequences}, {"cache_slots", stats.slots}});
  json["rank_shares"] = stats.rank_shares;
  if (h.has_served) json["served_share"] = stats.served;
  if (h.has_stalls)
    json["tiers"] = {{"disk", stats.tiers[0]}, {"ram", stats.tiers[1]}, {"vram", stats.tiers[2]}, {"arriving", stats.tiers[3]}};
  json["mean"] = stats_json(stats.mean);
  json["layers"] = nlohmann::ordered_json::array();
  for (size_t i = 0; i < stats.layers.size(); i++) {
    nlohmann::ordered_json layer = {{"layer", h.first_layer + static_cast<i64>(i)}};
    layer.update(stats_json(stats.layers[i]));
    json["layers"].push_back(layer);
  }
  print(json.dump(2) + "\n");
  return 0;
}

class TextFile {
 public:
  explicit TextFile(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "wb")) {
    if (file_ == nullptr) fail("{}: cannot write it: {}", path, std::strerror(errno));
  }
  void write(std::string_view text) {
    if (std::fwrite(text.data(), 1, text.size(), file_.get()) != text.size()) failed();
  }
  void close() {
    if (std::fclose(file_.release()) != 0) failed();
  }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  [[noreturn]] void failed() { fail("{}: cannot write it: {}", path_, std::strerror(errno)); }
  std::string path_;
  std::unique_ptr<std::FILE, Close> file_;
};

int to_text(const std::string& from, const std::string& to, bool csv) {
  TraceReader reader(from);
  TextFile file(to);
  std::string text = csv ? csv_heading(reader.header()) : "";
  for (TraceRecord record; reader.next(record); text.clear()) {
    if (interrupt_flag().load()) throw Interrupted();
    csv ? append_csv(reader.header(), record, text) : append_json(reader.header(), record, text);
    file.write(text);
  }
  file.write(text);
  file.close();
  print(fmt::format("{}: {} tokens\n", to, reader.records()));
  return 0;
}

int from_text(const Options& o) {
  const std::string& from = o.positional[1];
  std::unique_ptr<TraceWriter> writer;
  TraceSink sink{.open = [&](const TraceHeader& h) { writer = std::make_unique<TraceWriter>(o.output, h); },
                 .record = [&](const TraceRecord& r) { append_or_throw(*writer, r); }};
  bool folder = std::filesystem::is_directory(from);
  TraceImport result = folder ? import_esft(from, o.trace_top_k, o.trace_experts, sink) : import_csv(from, sink);
  if (result.incomplete > 0) note("{} tokens that lack a layer or a rank are left out", result.incomplete);
  finish(*writer);
  return 0;
}

int to_popularity(const std::string& from, const std::string& to) {
  TraceReader reader(from);
  const TraceHeader& h = reader.header();
  write_popularity(to, {h.model_hash, popularity_of(reader)});
  print(fmt::format("{}: popularity of {} layers of {} experts, by {} tokens\n", to, h.layers, h.experts, reader.records()));
  return 0;
}

int convert(const Options& o) {
  const std::string& from = o.positional[1];
  if (o.output.ends_with(".popularity")) return to_popularity(from, o.output);
  bool csv = o.output.ends_with(".csv"), json = o.output.ends_with(".jsonl");
  if (csv || json) return to_text(from, o.output, csv);
  if (std::filesystem::is_directory(from) || from.ends_with(".csv") || from.ends_with(".csv.gz")) return from_text(o);
  fail("convert {} to {}: one of them must be text: a name that ends in .csv or .jsonl, or a folder of ESFT's files", from,
       o.output);
}

int synth(const Options& o) {
  SyntheticRouting routing({.shape = deepseek_v3_routing(), .profile = o.profile, .tokens = o.trace_tokens,
                            .prompts = o.trace_prompts, .seed = static_cast<u64>(o.trace_seed), .coupling = o.coupling});
  TraceWriter writer(o.output, routing.header());
  for (TraceRecord record; routing.next(record);) {
    append_or_throw(writer, record);
    show_progress("tokens", writer.records(), o.trace_tokens, ProgressUnit::tokens);
  }
  clear_progress();
  finish(writer);
  return 0;
}

}  // namespace

int trace_command(const Options& o) {
  const std::string& action = o.positional[0];
  if (action == "info") return info(o);
  if (action == "stats") return stats(o);
  return action == "convert" ? convert(o) : synth(o);
}

}  // namespace stoker
