// bench/experts: one MoE layer of DeepSeek-V3 as decode meets it. 8 of 256 experts, a different 8 each time, through the
// ops that moe_layer calls: activations quantised once, gate + up + SiLU + down of all experts in one region, rows added
// in rank order. Per pair of formats (gate and up / down) it prints the time beside what the matrix products alone take
// on the same weights, so that the difference is what joining, quantising, waiting and adding cost.
//
// With --tokens 4 the four tokens want the same experts, as several users of one layer do in the worst case for
// arithmetic: the weights are read once, so what is above the time of one token is the kernels'.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "kernels/base/rng.h"
#include "kernels/device/stream.h"
#include "kernels/format/random_blocks.h"
#include "kernels/ops.h"

using namespace stoker;

namespace {

struct Settings {
  i64 hidden = 7168, ffn = 2048, experts = 256, top_k = 8, tokens = 1, repeats = 40;
  int threads = 0;
  std::string isa;
};

struct Pair {
  BlockType inner, down;  // of gate and up; of down
};

BlockType block_type(const std::string& name) {
  const BlockTypeInfo* found = find_block_type(name);
  if (found == nullptr) fail("{}: no such block format", name);
  return found->type;
}

f64 median(std::vector<f64> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Experts back to back in huge pages. A few random rows are made and repeated: only their bytes' number matters.
class Layer {
 public:
  Layer(const Settings& s, Pair pair)
      : s_(s),
        pair_(pair),
        inner_bytes_(s.ffn * row_bytes(pair.inner, s.hidden)),
        down_bytes_(s.hidden * row_bytes(pair.down, s.ffn)),
        weights_(s.experts * expert_bytes(), "benchmark experts") {
    Rng rng(1);
    for (i64 e = 0; e < s.experts; e++) {
      fill(pair.inner, 2 * inner_bytes_, row_bytes(pair.inner, s.hidden), rng, expert(e));
      fill(pair.down, down_bytes_, row_bytes(pair.down, s.ffn), rng, expert(e) + 2 * inner_bytes_);
    }
  }

  i64 expert_bytes() const { return 2 * inner_bytes_ + down_bytes_; }
  Matrix gate(i64 e) const { return {expert(e), pair_.inner, s_.ffn, s_.hidden}; }
  Matrix up(i64 e) const { return {expert(e) + inner_bytes_, pair_.inner, s_.ffn, s_.hidden}; }
  Matrix down(i64 e) const { return {expert(e) + 2 * inner_bytes_, pair_.down, s_.hidden, s_.ffn}; }

 private:
  std::byte* expert(i64 e) const { return weights_.data() + e * expert_bytes(); }

  static void fill(BlockType type, i64 bytes, i64 row, Rng& rng, std::byte* out) {
    fill_random_blocks(type, row / info(type).block_bytes, 0.02f, rng, out);
    for (i64 at = row; at < bytes; at += row) std::memcpy(out + at, out, static_cast<size_t>(row));
  }

  Settings s_;
  Pair pair_;
  i64 inner_bytes_, down_bytes_;
  Buffer weights_;
};

// Rows of one activation in the form that a format wants, as moe_layer keeps them.
class Inputs {
 public:
  Inputs(const std::vector<f32>& x, i64 rows, i64 cols) : x_(x), rows_(rows), cols_(cols) {
    for (ActivationForm form : {ActivationForm::Q8_32, ActivationForm::Q8_256})
      bytes_.emplace_back(static_cast<size_t>(rows * activation_row_bytes(form, cols)));
  }
  Activations as(Stream& stream, BlockType type) {
    ActivationForm form = weight_input(type, false);
    if (form == ActivationForm::F32) return {x_.data(), form, cols_ * i64{sizeof(f32)}};
    std::vector<std::byte>& to = bytes_[form == ActivationForm::Q8_32 ? 0 : 1];
    cpu_ops().quantize(stream, {x_.data(), rows_, cols_, cols_, form, to.data()});
    return {to.data(), form, activation_row_bytes(form, cols_)};
  }

 private:
  const std::vector<f32>& x_;
  i64 rows_, cols_;
  std::vector<std::vector<std::byte>> bytes_;
};

class Bench {
 public:
  Bench(const Settings& s, Stream& stream) : s_(s), stream_(stream), order_(static_cast<size_t>(s.experts)) {
    std::iota(order_.begin(), order_.end(), i64{0});
    Rng rng(2);
    for (f32& v : x_) v = rng.normal();
    for (f32& v : inner_) v = rng.normal();
    for (i64 t = 0; t < s.tokens; t++) token_.push_back(static_cast<i32>(t));
    for (i64 k = 0; k < s.top_k; k++)
      for (i64 t = 0; t < s.tokens; t++) out_row_.push_back(static_cast<i32>(t * s.top_k + k));
  }

  // Nanoseconds of the layer, of its gate and up products alone, and of its down products alone.
  struct Times {
    f64 layer, inner, down;
  };
  Times run(const Layer& layer) {
    std::vector<f64> whole, inner, down;
    for (i64 i = 0; i <= s_.repeats; i++) {
      choose();
      f64 a = timed([&] { run_layer(layer); });
      choose();
      f64 b = timed([&] { run_inner(layer); });
      choose();
      f64 c = timed([&] { run_down(layer); });
      if (i == 0) continue;  // faults in what is left and warms up
      whole.push_back(a);
      inner.push_back(b);
      down.push_back(c);
    }
    return {median(whole), median(inner), median(down)};
  }

 private:
  // The next top-k experts of a random order: each is used again only after all others.
  void choose() {
    if (next_ + s_.top_k > s_.experts) next_ = 0;
    if (next_ == 0)
      for (size_t i = order_.size() - 1; i > 0; i--)
        std::swap(order_[i], order_[static_cast<size_t>(rng_.below(static_cast<i64>(i) + 1))]);
    chosen_ = std::span(order_).subspan(static_cast<size_t>(next_), static_cast<size_t>(s_.top_k));
    next_ += s_.top_k;
  }

  template <class Body>
  static f64 timed(Body body) {
    i64 start = steady_clock().now_ns();
    body();
    return static_cast<f64>(steady_clock().now_ns() - start);
  }

  void run_layer(const Layer& layer) {
    work_.clear();
    for (i64 k = 0; k < s_.top_k; k++) {
      i64 e = chosen_[static_cast<size_t>(k)];
      work_.push_back({.gate = layer.gate(e),
                       .up = layer.up(e),
                       .down = layer.down(e),
                       .rows = token_.data(),
                       .out_rows = out_row_.data() + k * s_.tokens,
                       .tokens = s_.tokens});
    }
    Activations x = x_in_.as(stream_, work_[0].gate.type);
    cpu_ops().expert_ffn(stream_, {.work = work_,
                                   .x = x_.data(),
                                   .x_q8_32 = x.form == ActivationForm::Q8_32 ? x.x : nullptr,
                                   .x_q8_256 = x.form == ActivationForm::Q8_256 ? x.x : nullptr,
                                   .hidden = s_.hidden,
                                   .ffn = s_.ffn,
                                   .out = rows_.data(),
                                   .scratch = scratch_.data(),
                                   .scratch_bytes = scratch_.bytes(),
                                   .exact = false});
    cpu_ops().combine(stream_, {.rows = rows_.data(),
                                .weights = gate_weights_.data(),
                                .shared = nullptr,
                                .residual = residual_.data(),
                                .tokens = s_.tokens,
                                .top_k = s_.top_k,
                                .hidden = s_.hidden});
  }

  void run_inner(const Layer& layer) {
    for (i64 e : chosen_)
      for (const Matrix& m : {layer.gate(e), layer.up(e)})
        cpu_ops().matmul(stream_, {m, x_in_.as(stream_, m.type), s_.tokens, rows_.data(), s_.hidden});
  }

  void run_down(const Layer& layer) {
    for (i64 e : chosen_) {
      Matrix m = layer.down(e);
      cpu_ops().matmul(stream_, {m, inner_in_.as(stream_, m.type), s_.tokens, rows_.data(), s_.hidden});
    }
  }

  static size_t size(i64 n) { return static_cast<size_t>(n); }

  Settings s_;
  Stream& stream_;
  Rng rng_{3};
  std::vector<i64> order_;
  i64 next_ = 0;
  std::span<const i64> chosen_;
  std::vector<i32> token_, out_row_;
  std::vector<f32> x_ = std::vector<f32>(size(s_.tokens * s_.hidden));
  std::vector<f32> inner_ = std::vector<f32>(size(s_.tokens * s_.ffn));
  std::vector<f32> rows_ = std::vector<f32>(size(s_.tokens * s_.top_k * s_.hidden));
  std::vector<f32> gate_weights_ = std::vector<f32>(size(s_.tokens * s_.top_k), 0.125f);
  std::vector<f32> residual_ = std::vector<f32>(size(s_.tokens * s_.hidden));
  Inputs x_in_{x_, s_.tokens, s_.hidden}, inner_in_{inner_, s_.tokens, s_.ffn};
  Buffer scratch_{expert_scratch_bytes(s_.tokens * s_.top_k, s_.ffn), "benchmark scratch"};
  std::vector<ExpertWork> work_;
};

IsaLevel level_of(const std::string& text) {
  for (IsaLevel level : {IsaLevel::ref, IsaLevel::avx2, IsaLevel::avx512})
    if (name(level) == text) return level;
  return best_isa_level();
}

void run(const Settings& s, const std::vector<std::string>& pairs, bool json) {
  WorkerPool workers({.workers = s.threads, .pin = true});
  Stream stream(workers, level_of(s.isa));
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  if (!json)
    fmt::print("{} threads, level {}, {} of {} experts {}x{}, {} tokens, median of {}\n{:<16}{:>10}{:>9}{:>14}{:>16}\n",
               workers.size(), name(stream.level()), s.top_k, s.experts, s.ffn, s.hidden, s.tokens, s.repeats, "gate,up/down",
               "us/layer", "GB/s", "products us", "layer/products");
  for (const std::string& text : pairs) {
    size_t slash = text.find('/');
    if (slash == std::string::npos) fail("{}: a pair is GATE_AND_UP/DOWN, such as Q4_K/Q6_K", text);
    Layer layer(s, {block_type(text.substr(0, slash)), block_type(text.substr(slash + 1))});
    Bench::Times t = Bench(s, stream).run(layer);
    f64 bytes = static_cast<f64>(s.top_k * layer.expert_bytes());
    f64 products = t.inner + t.down;
    if (json)
      rows.push_back({{"pair", text},
                      {"tokens", s.tokens},
                      {"threads", workers.size()},
                      {"isa", name(stream.level())},
                      {"layer_us", t.layer * 1e-3},
                      {"gb_per_second", bytes / t.layer},
                      {"products_us", products * 1e-3},
                      {"layer_over_products", t.layer / products}});
    else
      fmt::print("{:<16}{:>10.0f}{:>9.2f}{:>14.0f}{:>16.3f}\n", text, t.layer * 1e-3, bytes / t.layer, products * 1e-3,
                 t.layer / products);
  }
  if (json) fmt::print("{}\n", rows.dump(2));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Time of one MoE layer of DeepSeek-V3 in decode, per pair of block formats."};
  Settings s;
  std::vector<std::string> pairs = {"Q4_K/Q6_K", "Q2_K/Q3_K", "IQ2_XXS/Q2_K", "IQ1_S/IQ2_XXS", "IQ3_XXS/IQ4_XS"};
  bool json = false;
  app.add_option("--pairs", pairs, "formats of gate and up / down")->delimiter(',')->capture_default_str();
  app.add_option("--tokens", s.tokens, "tokens that want the same experts")->check(CLI::Range(1, 512))->capture_default_str();
  app.add_option("--experts", s.experts, "experts in memory")->check(CLI::Range(1, 4096))->capture_default_str();
  app.add_option("--top-k", s.top_k, "experts of a token")->check(CLI::Range(1, 64))->capture_default_str();
  app.add_option("--hidden", s.hidden, "columns of gate and up")->check(CLI::Range(256, 65536))->capture_default_str();
  app.add_option("--ffn", s.ffn, "rows of gate and up")->check(CLI::Range(256, 65536))->capture_default_str();
  app.add_option("--repeats", s.repeats, "layers timed")->check(CLI::Range(1, 1000000))->capture_default_str();
  app.add_option("--threads", s.threads, "0: one per physical core")->check(CLI::Range(0, 1024));
  app.add_option("--isa", s.isa, "ref, avx2 or avx512")->check(CLI::IsMember({"ref", "avx2", "avx512"}));
  app.add_flag("--json", json, "print JSON");
  CLI11_PARSE(app, argc, argv);
  try {
    if (s.top_k > s.experts) fail("--top-k {} of --experts {}: there are not that many", s.top_k, s.experts);
    if (s.hidden % 256 != 0 || s.ffn % 256 != 0) fail("--hidden and --ffn are whole numbers of 256-weight blocks");
    run(s, pairs, json);
  } catch (const std::exception& e) {
    fmt::print(stderr, "bench/experts: {}\n", e.what());
    return 1;
  }
  return 0;
}
