// stoker tune: measures this machine, and finds the settings that are best for a model on it.
#include <algorithm>
#include <filesystem>

#include "kernels/base/error.h"
#include "kernels/base/work_folder.h"
#include "runtime/arch/deepseek2.h"
#include "runtime/recording_router.h"
#include "runtime/tokenizer/tokenizer.h"
#include "scheduler/model_file/expert_table.h"
#include "scheduler/model_file/gguf.h"
#include "scheduler/popularity_file.h"
#include "scheduler/trace/trace_reader.h"
#include "tools/bench_text.h"
#include "tools/commands.h"
#include "tools/terminal.h"
#include "tools/text_file.h"
#include "tools/text_input.h"
#include "tools/trace_popularity.h"
#include "tools/tune/kept_machine.h"
#include "tools/tune/machine_measure.h"
#include "tools/tune/profile.h"
#include "tools/tune/search.h"
#include "tools/tune/trial.h"

namespace stoker {

namespace {

namespace fs = std::filesystem;

constexpr int kRounds = 3;        // of the trials, one of each candidate per round
constexpr size_t kShown = 4;      // simulated candidates of a kind
constexpr f64 kLeastGain = 1.02;  // over the defaults, to be worth other settings

// The file that the experts are in, and their size.
MeasureRequest measure_model(const Options& o) {
  Gguf gguf = Gguf::open(o.model);
  Hparams h = read_deepseek2(gguf);
  if (h.moe_layers() == 0) fail("{}: the model has no routed experts: nothing of it streams", o.model);
  ExpertTable table = ExpertTable::from_gguf(gguf, h.expert_shape());
  LayerId layer = table.layers()[0].layer;
  std::vector<BlockType> formats;
  for (const GgufTensor& t : gguf.tensors())
    if (std::find(formats.begin(), formats.end(), t.type) == formats.end()) formats.push_back(t.type);
  return {.file = gguf.files()[static_cast<size_t>(table.extent(layer, ExpertId(0), ExpertMatrix::gate).file)].path,
          .request_bytes = table.expert_bytes(layer),
          .threads = static_cast<int>(o.threads),
          .formats = std::move(formats)};
}

int measure(const Options& o) {
  std::string text, path = o.output.empty() ? kept_machine_path() : o.output;
  if (path.empty()) fail("no place for what is measured: neither XDG_CONFIG_HOME nor HOME is set; give -o FILE.toml");
  if (o.output.empty()) fs::create_directories(profile_folder());
  if (o.model.empty()) {
    ScratchFile scratch(fs::path(path).parent_path().string());
    MachineMeasure m = measure_machine({.file = scratch.path(), .threads = static_cast<int>(o.threads)});
    print(measure_text(m));
    text = measure_toml(m);
  } else {
    MachineMeasure m = measure_machine(measure_model(o));
    print(measure_text(m));
    text = measure_toml(m);
  }
  write_text_file(path, text);
  print(fmt::format("{}: written; `stoker simulate --machine {}` uses it{}\n", path, path,
                    o.output.empty() ? ", and `stoker serve` shows what is used of it" : ""));
  return 0;
}

class Tuning {
 public:
  explicit Tuning(const Options& o) : options_(o), gguf_(Gguf::open(o.model)), hparams_(read_deepseek2(gguf_)) {
    if (hparams_.moe_layers() == 0) fail("{}: the model has no routed experts: nothing of it streams", o.model);
    fingerprint_ = model_fingerprint(gguf_, hparams_);
    path_ = o.output.empty() ? default_profile_path(fingerprint_) : o.output;
    if (path_.empty()) fail("no place for a profile: neither XDG_CONFIG_HOME nor HOME is set; give -o FILE");
    read_text();
  }

  int run() {
    print("1 of 4: measuring this machine\n");
    MachineMeasure m = measure_machine(measure_model(options_));
    print(measure_text(m));
    write_text_file(work_.file("machine.toml"), measure_toml(m));
    if (options_.output.empty()) {
      fs::create_directories(profile_folder());
      write_text_file(kept_machine_path(), measure_toml(m));
    }

    print(fmt::format("2 of 4: recording the routing of {} tokens\n", text_.tokens.size()));
    Candidate defaults{.options = engine_defaults()};
    Recording recording = record_trial(defaults.options, text_, work_.file("routing.trace"));
    if (recording.all_resident) {
      print(fmt::format("all experts fit into the {} there are for them: nothing streams, so there is nothing to tune\n",
                        human_bytes(recording.ram_bytes)));
      return 0;
    }
    defaults.options.ram.bytes = recording.ram_bytes;

    print("3 of 4: simulating\n");
    Options searched = defaults.options;
    searched.ring_depth = m.best_disk().depth;
    searched.piece.bytes = m.best_disk().piece_bytes;
    SearchResult found = search_settings({.options = searched,
                                          .machine = work_.file("machine.toml"),
                                          .routing = work_.file("routing.trace"),
                                          .gate_recall = recording.gate_recall,
                                          .seconds = static_cast<f64>(options_.search_seconds)});
    if (found.tokens < static_cast<i64>(text_.tokens.size()))
      print(fmt::format("  {} of {} tokens each, to end within about {} s\n", found.tokens, text_.tokens.size(), options_.search_seconds));
    for (const std::vector<Candidate>* some : {&found.without, &found.with, &found.governed})
      for (size_t i = 0; i < std::min(kShown, some->size()); i++)
        print(fmt::format("  {:.2f} tokens/s with {}\n", (*some)[i].simulated_tokens_per_second, (*some)[i].describe()));

    print(fmt::format("4 of 4: {} rounds for real, {} tokens each\n", kRounds,
                      static_cast<i64>(text_.tokens.size()) - text_.warm_up));
    std::vector<Candidate> candidates = finalists(defaults, found);
    finish(candidates, trials(candidates));
    return 0;
  }

 private:
  // What a run without options and without a profile has, with the budget that is asked for.
  Options engine_defaults() const {
    Options o;
    o.model = options_.model;
    o.ram = options_.ram;
    o.threads = options_.threads;
    return o;
  }

  void read_text() {
    std::string text = options_.prompts.empty() ? std::string(bench_text()) : read_text_file(options_.prompts);
    std::string where = options_.prompts.empty() ? "built-in text" : options_.prompts;
    require_utf8(text, where);
    text_.tokens = Tokenizer::from_gguf(gguf_).encode(text, /*add_bos=*/false);
    if (text_.tokens.size() > static_cast<size_t>(options_.tune_tokens)) text_.tokens.resize(static_cast<size_t>(options_.tune_tokens));
    if (text_.tokens.size() < 32) fail("{}: {} tokens are too few to tune on; give at least 32", where, text_.tokens.size());
    text_.warm_up = static_cast<i64>(text_.tokens.size()) / 4;
  }

  // The defaults first; then the best with guesses and their governor, with the defaults' reads and governor too, because a
  // simulated drive has no trouble with few; the best policy with the defaults' guesses, and without any.
  static std::vector<Candidate> finalists(const Candidate& defaults, const SearchResult& found) {
    Candidate policy = found.without[0], reads = found.with[0];
    reads.options.ring_depth = defaults.options.ring_depth;
    reads.options.piece = defaults.options.piece;
    policy.options.predictor = defaults.options.predictor;
    policy.options.lookahead = defaults.options.lookahead;
    policy.options.prefetch = defaults.options.prefetch;
    std::vector<Candidate> all = {defaults};
    for (const Candidate& c : {found.governed[0], reads, policy, found.without[0]}) {
      auto same = [&](const Candidate& other) { return other.describe() == c.describe(); };
      if (std::none_of(all.begin(), all.end(), same)) all.push_back(c);
    }
    return all;
  }

  // [candidates] medians. Alternating, because machines get warm and neighbours come and go.
  std::vector<f64> trials(const std::vector<Candidate>& candidates) const {
    std::vector<std::vector<f64>> speeds(candidates.size());
    for (int round = 0; round < kRounds; round++)
      for (size_t i = 0; i < candidates.size(); i++)
        speeds[i].push_back(trial_tokens_per_second(
            candidates[i].options, text_, fmt::format("round {}, {} of {}", round + 1, i + 1, candidates.size())));
    std::vector<f64> medians;
    for (size_t i = 0; i < candidates.size(); i++) {
      std::sort(speeds[i].begin(), speeds[i].end());
      medians.push_back(speeds[i][kRounds / 2]);
      print(fmt::format("  {:.2f} tokens/s ({:.2f} to {:.2f}): {}{}\n", medians[i], speeds[i].front(), speeds[i].back(),
                        i == 0 ? "defaults: " : "", candidates[i].describe()));
    }
    return medians;
  }

  void finish(const std::vector<Candidate>& candidates, const std::vector<f64>& speeds) {
    size_t best = static_cast<size_t>(std::max_element(speeds.begin(), speeds.end()) - speeds.begin());
    if (speeds[best] < kLeastGain * speeds[0]) best = 0;
    Profile profile{.model = hparams_.name,
                    .fingerprint = fingerprint_,
                    .machine = machine_name(),
                    .ram_bytes = candidates[best].options.ram.bytes,
                    .default_tokens_per_second = speeds[0],
                    .tokens_per_second = speeds[best],
                    .settings = candidates[best].settings()};
    fs::create_directories(fs::path(path_).parent_path().empty() ? "." : fs::path(path_).parent_path());
    std::string popularity = fs::path(path_).replace_extension(".popularity").string();
    if (!fs::exists(popularity)) write_popularity(popularity, popularity_of_recording());  // else runs have added to it
    profile.settings.push_back({"popularity", fs::absolute(popularity).string()});
    write_text_file(path_, profile_toml(profile));
    if (best == 0)
      print("the defaults are best here, within 2 %\n");
    else
      print(fmt::format("gained {:+.1f} %: {:.2f} instead of {:.2f} tokens/s with {}\n", 100 * (speeds[best] / speeds[0] - 1),
                        speeds[best], speeds[0], candidates[best].describe()));
    print(fmt::format("{}: written; run, bench and serve use it\n", path_));
  }

  PopularityFile popularity_of_recording() const {
    TraceReader reader(work_.file("routing.trace"));
    return {reader.header().model_hash, popularity_of(reader)};
  }

  const Options& options_;
  Gguf gguf_;
  Hparams hparams_;
  std::string fingerprint_, path_;
  TrialText text_;
  WorkFolder work_;
};

}  // namespace

int tune_command(const Options& options) { return options.measure ? measure(options) : Tuning(options).run(); }

}  // namespace stoker
