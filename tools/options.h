// Options: what the command line says. One table (options.cc) holds a row per option: names, field, default
// (the field's initial value), limits and help. Parsing, help, and the checks of validate() all come from
// those rows.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

enum class Command : u32 {
  none = 0,
  run = 1,
  inspect = 2,
  tokenize = 4,
  eval = 8,
  bench = 16,
  synth = 32,
  pack = 64,
  simulate = 128,
  plan = 256,
  trace = 512,
  serve = 1024,
  tune = 2048,
  devices = 4096,
};

constexpr i64 kMostBatch = 4096;  // -b

// A number of bytes, given as 100G, 8GiB, 512M, 1.5TB. 0: not given.
struct ByteSize {
  i64 bytes = 0;
};

// An option by its long name without dashes, and its value: "policy", "lru".
struct Setting {
  std::string name, value;
};

struct Options {
  // What to read.
  std::string model;
  std::string prompt;
  std::string file;  // "-": stdin
  std::string system_prompt;
  bool raw = false;
  bool chat = false;
  bool thinking = false;

  // How much, where.
  i64 predict = -1;  // -1: until the model ends
  i64 context = 4096;
  i64 threads = 0;  // 0: one per physical core
  i64 batch = 0;  // 0: chosen, by eval 512
  ByteSize ram;
  std::string device = "auto";
  std::string vram;  // "": all that is left
  i64 split_heads = 16384;
  std::string isa;
  std::string io = "auto";
  std::string policy = "auto";
  std::string popularity;
  i64 ring_depth = 64;
  ByteSize piece{1 << 20};
  std::string cache_type;  // "": f16, or f32 with --exact
  std::string expert_groups = "file";
  bool exact = false;
  bool no_preload = false;
  std::string predictor = "gate+shared";
  i64 lookahead = 1;  // 0: the governor chooses
  std::string prefetch = "auto";
  f64 prefetch_threshold = 0;  // 0: found while running
  f64 prefetch_gain = 1;       // percent
  i64 prefetch_window = 64;    // tokens

  // Sampling.
  i64 seed = -1;  // -1: a new one every time
  f64 temperature = 0.8;
  i64 top_k = 40;
  f64 top_p = 0.95;
  f64 min_p = 0.05;
  f64 repeat_penalty = 1.0;
  i64 repeat_last_n = 64;
  f64 presence_penalty = 0;
  f64 frequency_penalty = 0;

  // What to print.
  bool perf = false;
  std::string timeline_file;
  bool json = false;
  bool verbose = false;

  // tokenize
  bool from_stdin = false;
  bool no_bos = false;
  bool decode = false;

  // eval
  std::string tokens_file;
  std::string logits_file;
  std::string top1_file;

  // bench
  i64 bench_prompt = 512;
  i64 bench_generate = 128;
  i64 bench_depth = 0;
  i64 repetitions = 5;
  std::string format = "md";

  // serve
  std::string host = "127.0.0.1";
  i64 port = 8080;
  std::string api_key, api_key_file;
  std::string cors;  // "": none; *, or origins with commas between
  std::string alias;
  i64 parallel = 4;
  i64 queue = 32;
  std::string slot_save_path;
  i64 drain_seconds = 60;
  std::string log_format = "text";
  i64 serve_batch = 0;  // 0: by whether all experts fit
  std::string limits_of = "auto";  // none, auto or a machine file

  // synth
  std::string shape = "deepseek-v3";
  i64 dense_layers = -1;  // -1: as the shape has
  i64 moe_layers = -1;
  std::string expert_type;  // "": as the shape has
  std::string down_type;
  std::string attention_type;
  std::string tokenizer_file;
  i64 synth_seed = 1;
  ByteSize split_size;
  bool sparse = false;
  std::string output;

  // pack; its output is the one above
  std::string stripe_folders;  // separated by commas
  std::string verify;
  bool force = false;

  // simulate and plan; shape, formats and seed are synth's
  std::string machine = "tower-2x3090-4x32GB";
  i64 sim_tokens = 512;
  i64 sim_prompt = 0;
  std::string sim_routing = "synthetic:default";
  bool packed = false;
  std::string sweep_ram;  // "8G..100G"
  // charts, as SVG files: of simulate and trace; of trace; of what predicts
  std::string plot, plot_residency, plot_recall;
  // routing traces; the shape is V3's alone, the output is the one above
  std::string trace_file;  // where run and bench record
  bool trace_details = false;
  std::string routing;     // bench: "": the model's gate
  std::string trace_shape = "deepseek-v3";
  std::string profile = "default";
  i64 trace_tokens = 4000;
  i64 trace_prompts = 8;
  i64 trace_seed = 1;
  f64 coupling = 0;
  i64 cache_slots = 0;  // 0: a 32th of the experts, and at least top-k
  i64 trace_experts = 64, trace_top_k = 6;  // of ESFT's files, which do not say

  // tune; its output is the one above
  bool measure = false;
  std::string prompts;
  i64 tune_tokens = 256;
  i64 search_seconds = 600;
  std::string tune_profile = "auto";  // run, bench, serve: none, auto or a file

  std::vector<std::string_view> given;  // names of the rows that the command line sets
  std::vector<std::string> positional;
};

// Where a row's value goes. bool: a switch, all others take a value.
using OptionField = std::variant<bool Options::*, std::string Options::*, i64 Options::*, f64 Options::*,
                                 ByteSize Options::*>;

struct OptionRow {
  u32 commands = 0;          // bits of Command
  std::string_view names;    // "-m, --model"
  std::string_view metavar;  // "" for switches. With '|': the values it may have
  OptionField field;
  std::string_view help;
  f64 min = 0, max = 0;  // limits of numbers, when min < max
};

std::span<const OptionRow> option_rows();

struct CommandRow {
  Command command;
  std::string_view name;
  std::string_view usage;    // after "stoker NAME "
  std::string_view summary;  // one line
  std::string_view details;  // paragraphs after the options
};

std::span<const CommandRow> command_rows();
const CommandRow& row(Command command);

// What main is asked to do.
struct CommandLine {
  enum class Action { execute, help, version } action = Action::execute;
  Command command = Command::none;  // of help: none means the overview
  Options options;
  std::vector<std::string> problems;  // everything that is wrong, in order; empty: go
};

// `arguments` without the program's name.
CommandLine parse_command_line(std::span<const std::string> arguments);

// What one option at a time cannot see: missing and contradicting ones. All problems at once.
std::vector<std::string> validate(Command command, const Options& options);

std::string overview_help();
std::string command_help(Command command);

// Sets what the command line did not give. Returns everything that is wrong; `options` is then of no use.
std::vector<std::string> apply_settings(Command command, std::span<const Setting> settings, Options& options);

// "8GiB" -> bytes; false when it is not a size. K, M, G, T and KiB .. TiB are powers of 1024, KB .. TB of
// 1000.
bool parse_byte_size(std::string_view text, i64& bytes);
// "22G" or "20G,6G,0" -> bytes each.
bool parse_byte_sizes(std::string_view text, std::vector<i64>& bytes);

// "8G..100G" -> bytes, the smaller first; false when it is no range.
bool parse_ram_range(std::string_view text, i64& from, i64& to);

// "8/4" -> 8 and 4, 1 <= used <= groups.
bool parse_expert_groups(std::string_view text, i64& groups, i64& used);

}  // namespace stoker
