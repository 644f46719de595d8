// stoker eval: feeds a text as it is and judges how well the model saw each next token coming.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>

#include "runtime/piece_size.h"
#include "runtime/sampler.h"
#include "runtime/tokenizer/tokenizer.h"
#include "scheduler/model_file/gguf.h"
#include "tools/commands.h"
#include "tools/engine_setup.h"
#include "tools/report.h"
#include "tools/teacher.h"
#include "tools/terminal.h"
#include "tools/text_input.h"

namespace stoker {

namespace {

// A file that is written front to back while its name may be anything, /dev/full included.
class OutputFile {
 public:
  explicit OutputFile(const std::string& path) : path_(path) {
    if (path.empty()) return;
    descriptor_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor_ < 0) fail("{}: {}", path_, std::strerror(errno));
  }
  ~OutputFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  bool is_open() const { return descriptor_ >= 0; }
  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      ssize_t n = ::write(descriptor_, bytes.data(), bytes.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail("{}: {}", path_, std::strerror(errno));
      bytes = bytes.subspan(static_cast<size_t>(n));
    }
  }

 private:
  std::string path_;
  int descriptor_ = -1;
};

std::vector<i32> tokens_to_judge(const Options& o, const Gguf& gguf) {
  std::string path = o.tokens_file.empty() ? o.file : o.tokens_file;
  std::string text = read_text_file(path);
  Tokenizer tokenizer = Tokenizer::from_gguf(gguf);
  std::vector<i32> tokens;
  if (!o.tokens_file.empty()) {
    tokens = parse_token_ids(text, tokenizer.vocab_size(), path);
  } else {
    require_utf8(text, path);
    tokens = tokenizer.encode(text, !o.no_bos);
  }
  if (tokens.empty()) fail("{}: no tokens to judge", path);
  i64 count = static_cast<i64>(tokens.size());
  if (count > o.context)
    fail("{}: {} tokens do not fit in a context of {}; use -c {}", path, count, o.context, count);
  return tokens;
}

struct Judgement {
  f64 nll_sum = 0;
  i64 predictions = 0;
  std::vector<i32> top1;
  u64 hash = kHashStart;

  f64 mean_nll() const { return predictions > 0 ? nll_sum / static_cast<f64>(predictions) : 0; }
};

void print_report(const Options& o, const Engine& engine, const Judgement& judged, const Phase& phase) {
  if (o.json) {
    nlohmann::ordered_json json = {
        {"model", o.model},
        {"tokens", phase.tokens},
        {"predictions", judged.predictions},
        {"mean_nll_nats_per_token", judged.mean_nll()},
        {"perplexity", std::exp(judged.mean_nll())},
        {"logits_hash", fmt::format("{:016x}", judged.hash)},
        {"speed", to_json(phase)},
        {"engine", engine_json(engine)},
    };
    print(json.dump(2) + "\n");
    return;
  }
  std::string text = fmt::format(
      "tokens       {}\nmean NLL     {:.6f} nats/token over {} predictions\nperplexity   {:.4f}\n"
      "logits hash  {:016x}\n",
      phase.tokens, judged.mean_nll(), judged.predictions, std::exp(judged.mean_nll()), judged.hash);
  if (o.top1_file == "-") {
    note("{}speed        {:.2f} tokens/s", text, phase.tokens_per_second());
  } else {
    print(text);
    note("speed        {:.2f} tokens/s", phase.tokens_per_second());
  }
}

}  // namespace

int eval_command(const Options& o) {
  std::vector<i32> tokens = tokens_to_judge(o, Gguf::open(o.model));
  OutputFile logits_file(o.logits_file);
  EngineOptions options = engine_options(o);
  if (options.chunk == 0) options.chunk = kPiece;  // more would take room for their logits, of the whole vocabulary each
  std::unique_ptr<Engine> engine = load_engine(options);
  i64 vocab = engine->hparams().vocab, total = static_cast<i64>(tokens.size());

  Judgement judged;
  Teacher teacher(*engine);
  PhaseMeter meter(*engine);
  teacher.feed(tokens, WantLogits::every, [&](i64 first, std::span<const f32> logits) {
    if (logits_file.is_open()) logits_file.write(std::as_bytes(logits));
    judged.hash = hash_logits(logits, judged.hash);
    i64 rows = static_cast<i64>(logits.size()) / vocab;
    for (i64 row = 0; row < rows; ++row) {
      std::span<const f32> one = logits.subspan(static_cast<size_t>(row * vocab), static_cast<size_t>(vocab));
      judged.top1.push_back(argmax(one));
      if (first + row + 1 >= total) continue;
      judged.nll_sum += negative_log_likelihood(one, tokens[static_cast<size_t>(first + row + 1)]);
      ++judged.predictions;
    }
    show_progress("evaluating", first + rows, total, ProgressUnit::tokens);
  });
  Phase phase = meter.stop(total);
  clear_progress();

  if (!o.top1_file.empty()) {
    std::string text = fmt::format("{}\n", fmt::join(judged.top1, " "));
    if (o.top1_file == "-") {
      print(text);
    } else {
      write_file(o.top1_file, text);
    }
  }
  print_report(o, *engine, judged, phase);
  return 0;
}

}  // namespace stoker
