// What CUDA kernels reach on this machine's first card: products per format with 1 and 8 tokens as bytes of weights per
// second and as a share of the card's own copies, and latent attention over a long context.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <vector>

#include "kernels/base/clock.h"
#include "kernels/cuda/activation_rows.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/latent_attention.h"
#include "kernels/device/cuda_device.h"
#include "kernels/device/link_probe.h"
#include "kernels/device/stream.h"
#include "kernels/format/packed.h"
#include "kernels/format/random_blocks.h"

using namespace stoker;

namespace {

struct Options {
  i64 mib = 512;  // of weights per format: far beyond the card's L2
  i64 cols = 7168, repeats = 20, length = 32768;
  std::string format;
};

void require(const Status& status) {
  if (!status.ok()) throw Error(status.message());
}

class CardBench {
 public:
  explicit CardBench(const Options& options) : o_(options) {}

  void run() {
    LinkMeasure link;
    require(measure_link(*device_, 512 * kMiB, 5, link));
    const DeviceProperties card = device_->properties();
    fmt::print("{}, sm_{}{}, copies {:.0f} GB/s (read and written)\n\n", card.name, card.compute_major,
               card.compute_minor, link.memory_gb_per_second);
    fmt::print("{:8} {:>9} {:>9} {:>7} {:>9} {:>7}\n", "format", "MiB", "1: GB/s", "%", "8: GB/s", "%");
    for (const BlockTypeInfo& type : all_block_types())
      if (o_.format.empty() || type.name == o_.format) product(type, link.memory_gb_per_second);
    if (o_.format.empty())
      for (CacheType type : {CacheType::F16, CacheType::Q8_0}) attention(type, link.memory_gb_per_second);
  }

 private:
  // Freed with the process.
  DevicePtr allocate(i64 bytes) {
    DevicePtr memory;
    require(device_->allocate(bytes, "the bench", memory));
    return memory;
  }
  DevicePtr upload(const std::vector<std::byte>& bytes) {
    DevicePtr memory = allocate(static_cast<i64>(bytes.size()));
    require(native_->copy_to_device(memory, bytes.data(), static_cast<i64>(bytes.size())));
    require(native_->synchronize());
    return memory;
  }

  // Median of the seconds that `post` takes on the card.
  f64 seconds(const std::function<void()>& post) {
    std::vector<f64> times;
    for (i64 i = 0; i < o_.repeats + 3; i++) {
      const i64 begin = clock_.now_ns();
      post();
      require(native_->record(*event_));
      require(event_->wait());
      if (i >= 3) times.push_back(static_cast<f64>(clock_.now_ns() - begin) * 1e-9);
    }
    std::nth_element(times.begin(), times.begin() + o_.repeats / 2, times.end());
    return times[static_cast<size_t>(o_.repeats / 2)];
  }

  void product(const BlockTypeInfo& type, f64 roof) {
    const i64 rows = std::max<i64>(32, o_.mib * kMiB / row_bytes(type.type, o_.cols) / 32 * 32);
    const i64 bytes = packed_bytes(type.type, rows, o_.cols);
    // Random blocks look the same in any order of 32 rows, so a small piece is repeated.
    Rng rng(1);
    std::vector<std::byte> tile(static_cast<size_t>(32 * row_bytes(type.type, o_.cols))), packed(tile.size());
    fill_random_blocks(type.type, 32 * o_.cols / type.block_weights, 0.02f, rng, tile.data());
    pack_rows(type.type, 32, o_.cols, tile.data(), packed.data());
    std::vector<std::byte> all(static_cast<size_t>(bytes));
    for (size_t at = 0; at < all.size(); at += packed.size()) std::copy(packed.begin(), packed.end(), all.begin() + static_cast<i64>(at));
    const DevicePtr weights = upload(all);
    const ActivationForm form = weight_input(type.type, false);
    const i64 stride = form == ActivationForm::F32 ? o_.cols * 4 : cuda::card_row_bytes(form, o_.cols);
    const DevicePtr x = upload(std::vector<std::byte>(static_cast<size_t>(8 * stride)));
    const DevicePtr y = allocate(8 * rows * 4);
    fmt::print("{:8} {:9.0f}", type.name, static_cast<f64>(bytes) / kMiB);
    for (i64 tokens : {1, 8}) {
      const f64 gb = static_cast<f64>(bytes) * 1e-9 / seconds([&] {
        cuda_ops().matmul(stream_, {{weights.as<void>(), type.type, rows, o_.cols}, {x.as<void>(), form, stride}, tokens,
                                    y.as<f32>(), rows});
      });
      fmt::print(" {:9.0f} {:6.1f}%", gb, 100 * gb / roof);
    }
    fmt::print("\n");
    for (DevicePtr memory : {weights, x, y}) device_->free(memory);
  }

  // One token of V3: 128 heads, 512 + 64 values per position.
  void attention(CacheType type, f64 roof) {
    const i64 heads = 128, latent = 512, rope = 64, bytes = cache_bytes(type, o_.length * (latent + rope));
    const DevicePtr cache = upload(std::vector<std::byte>(static_cast<size_t>(bytes)));
    const DevicePtr q = upload(std::vector<std::byte>(static_cast<size_t>(heads * (latent + rope) * 4)));
    const DevicePtr out = allocate(heads * latent * 4);
    const i64 scratch_bytes = cuda::kAttentionMaxParts * heads * (latent + 2) * 4;
    const DevicePtr scratch = allocate(scratch_bytes);
    const std::vector<LatentAttentionArgs::Query> queries = {{cache.as<void>(), o_.length}};
    const f64 time = seconds([&] {
      cuda_ops().latent_attention(
          stream_, {type, queries, q.as<f32>(), q.as<f32>() + heads * latent, heads * rope, rope, out.as<f32>(), heads, latent,
                    rope, 0.1f, scratch.as<std::byte>(), scratch_bytes});
    });
    const f64 flops = 2.0 * static_cast<f64>((2 * latent + rope) * heads * o_.length);
    const f64 gb = static_cast<f64>(bytes) * 1e-9 / time;
    fmt::print("\nlatent attention, {} heads, {} positions of {}: {:.3f} ms, {:.1f} TFLOP/s, {:.0f} GB/s ({:.1f} %)\n", heads,
               o_.length, type == CacheType::F16 ? "f16" : "q8_0", time * 1e3, flops * 1e-12 / time, gb, 100 * gb / roof);
    for (DevicePtr memory : {cache, q, out, scratch}) device_->free(memory);
  }

  const Options& o_;
  SteadyClock clock_;
  std::unique_ptr<Device> device_ = open_cuda_device(0, "cuda:0");
  std::unique_ptr<DeviceStream> native_ = device_->make_stream();
  std::unique_ptr<DeviceEvent> event_ = device_->make_event();
  Stream stream_{*native_, best_isa_level()};
};

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{"Speed of the CUDA kernels on the first card"};
  app.add_option("--mib", options.mib, "MiB of weights per format")->check(CLI::Range(1, 16384));
  app.add_option("--cols", options.cols, "columns of the matrices")->check(CLI::Range(256, 65536));
  app.add_option("--repeats", options.repeats, "runs per figure")->check(CLI::Range(1, 1000));
  app.add_option("--length", options.length, "positions that attention sees")->check(CLI::Range(1, 1 << 20));
  app.add_option("--format", options.format, "this format's product alone (Q4_K, ...)");
  CLI11_PARSE(app, argc, argv);
  if (cuda_presence().cards == 0) {
    fmt::print(stderr, "no CUDA card: {}; nothing was measured\n", cuda_presence().why_none);
    return 1;
  }
  if (options.cols % 256 != 0) {
    fmt::print(stderr, "--cols {}: not a multiple of 256\n", options.cols);
    return 1;
  }
  try {
    CardBench(options).run();
  } catch (const Error& e) {
    fmt::print(stderr, "{}\n", e.what());
    return 1;
  }
  return 0;
}
