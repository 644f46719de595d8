// Every kernel on a card, through the table of ops: the matrix-vector kernel bit for bit, the others against their twins
// within what their arithmetic allows; all outputs lie between guards. gpu_main.cc skips it without a card; on an emulated one
// (emulated_launch.cc) it is smaller.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/cuda/card.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/device/cuda_device.h"
#include "kernels/device/mapped_flag.h"
#include "kernels/device/stream.h"
#include "tests/kernels/cpu/matmul_cases.h"
#include "tests/kernels/cpu/op_inputs.h"
#include "tests/kernels/cuda/card_rows.h"
#include "tests/kernels/cuda/matvec_order.h"
#include "tests/kernels/cuda/which_card.h"

using namespace stoker;
using namespace stoker::test;

namespace {

struct Gpu {
  std::unique_ptr<Device> device = open_cuda_device(0, "cuda:0");
  std::unique_ptr<DeviceStream> native = device->make_stream();
  Stream stream{*native, best_isa_level()};
};

Gpu& gpu() {
  static Gpu one;
  return one;
}

struct Twins {
  WorkerPool pool{{.workers = 0, .pin = false}};
  Stream stream{pool, best_isa_level()};
};

// An array on the card between two guards. What it holds before a kernel writes is no number.
template <class T>
class OnCard {
 public:
  explicit OnCard(i64 count) : count_(count), host_(static_cast<size_t>(bytes()), std::byte{0xff}) {
    REQUIRE(gpu().device->allocate(bytes(), "a test", memory_).ok());
    upload();
  }
  explicit OnCard(const std::vector<T>& values) : OnCard(static_cast<i64>(values.size())) {
    std::memcpy(host_.data() + kGuard, values.data(), values.size() * sizeof(T));
    upload();
  }
  ~OnCard() { gpu().device->free(memory_); }
  OnCard(const OnCard&) = delete;

  T* at(i64 index = 0) const { return (memory_ + kGuard).as<T>() + index; }

  // What is there once the stream has come to rest; fails when a guard was written.
  std::vector<T> read() {
    std::vector<std::byte> now(host_.size());
    REQUIRE(gpu().native->copy_to_host(now.data(), memory_, bytes()).ok());
    const Status status = gpu().native->synchronize();
    REQUIRE_MESSAGE(status.ok(), status.message());
    std::vector<T> values(static_cast<size_t>(count_));
    std::memcpy(values.data(), now.data() + kGuard, values.size() * sizeof(T));
    i64 damaged = 0;
    for (i64 i = 0; i < bytes(); i++)
      if (i < kGuard || i >= bytes() - kGuard) damaged += now[static_cast<size_t>(i)] != std::byte{0xff};
    CHECK(damaged == 0);
    return values;
  }

 private:
  static constexpr i64 kGuard = 256;
  i64 bytes() const { return count_ * i64{sizeof(T)} + 2 * kGuard; }
  void upload() {
    REQUIRE(gpu().native->copy_to_device(memory_, host_.data(), bytes()).ok());
    REQUIRE(gpu().native->synchronize().ok());
  }

  i64 count_;
  std::vector<std::byte> host_;
  DevicePtr memory_;
};

std::vector<std::byte> packed(BlockType type, i64 rows, i64 cols, const std::byte* from) {
  std::vector<std::byte> to(static_cast<size_t>(packed_bytes(type, rows, cols)));
  pack_rows(type, rows, cols, from, to.data());
  return to;
}

f64 relative_error(const std::vector<f32>& got, const std::vector<f32>& want) {
  f64 error = 0, size = 0;
  for (size_t i = 0; i < want.size(); i++) {
    const f64 d = static_cast<f64>(got[i]) - static_cast<f64>(want[i]);
    error += d * d;
    size += static_cast<f64>(want[i]) * static_cast<f64>(want[i]);
  }
  const f64 share = std::sqrt(error / size);
  return std::isfinite(share) ? share : INFINITY;
}

template <class T>
i64 differing(const std::vector<T>& a, const std::vector<T>& b) {
  REQUIRE(a.size() == b.size());
  i64 result = 0;
  for (size_t i = 0; i < a.size(); i++) result += std::memcmp(&a[i], &b[i], sizeof(T)) != 0;
  return result;
}

}  // namespace

TEST_CASE("gpu: products of all block formats, bit for bit up to 8 tokens and within f16 beyond") {
  for (const MatmulCase& c : matmul_cases()) {
    if (c.exact || c.scattered) continue;
    if (kEmulatedCard && c.rows * c.cols * c.tokens > 150000) continue;
    if (c.tokens > 8 && c.fill != Fill::random) continue;  // beyond the range of halves on purpose
    CAPTURE(c.name());
    const MatmulData data(c, 5);
    const MatmulTile tile = data.tile();
    const CardRows x = card_rows(tile.x, c.tokens, c.cols, tile.x_stride_bytes, weight_input(c.type, false));
    OnCard<std::byte> weights(packed(c.type, c.rows, c.cols, tile.w)), rows(x.bytes);
    OnCard<f32> y(c.tokens * c.rows);
    cuda_ops().matmul(gpu().stream, {.weights = {weights.at(), c.type, c.rows, c.cols},
                                     .x = {rows.at(), weight_input(c.type, false), x.stride_bytes},
                                     .tokens = c.tokens, .y = y.at(), .y_stride = c.rows});
    const std::vector<f32> got = y.read();
    std::vector<f32> want;
    for (i64 t = 0; t < c.tokens; t++)
      for (i64 r = 0; r < c.rows; r++)
        want.push_back(in_kernel_order(tile, c.type, tile.w + r * tile.w_row_bytes, tile.x + t * tile.x_stride_bytes));
    if (c.tokens <= 8)
      CHECK(differing(got, want) == 0);
    else
      CHECK(relative_error(got, want) < 0x1p-9);
  }
}

TEST_CASE("gpu: products of float formats") {
  Rng rng(1);
  for (BlockType type : {BlockType::F32, BlockType::F16, BlockType::BF16})
    for (i64 cols : {1, 130, 7168}) {
      const i64 rows = 67, tokens = 11;
      const TestMatrix w(type, rows, cols, 1, rng);
      const std::vector<f32> x = normals(tokens * cols, 1, rng);
      OnCard<std::byte> weights(w.blocks);
      OnCard<f32> x_card(x), y(tokens * rows);
      cuda_ops().matmul(gpu().stream, {{weights.at(), type, rows, cols}, {x_card.at(), ActivationForm::F32, cols * 4},
                                       tokens, y.at(), rows});
      std::vector<f32> want(static_cast<size_t>(tokens * rows));
      Twins twins;
      cpu_ops().matmul(twins.stream, {w.view(), {x.data(), ActivationForm::F32, cols * 4}, tokens, want.data(), rows});
      CHECK(relative_error(y.read(), want) < 1e-5);
    }
}

TEST_CASE("gpu: experts of all formats, with few tokens and many, and with mixed formats") {
  Rng rng(2);
  const i64 hidden = 512, ffn = 256, tokens = 40;
  const std::vector<f32> x = normals(tokens * hidden, 1, rng);
  Twins twins;
  OnCard<f32> x_card(x);
  OnCard<std::byte> narrow(tokens * cuda::card_row_bytes(ActivationForm::Q8_32, hidden));
  OnCard<std::byte> wide(tokens * cuda::card_row_bytes(ActivationForm::Q8_256, hidden));
  cuda_ops().quantize(gpu().stream, {x_card.at(), tokens, hidden, hidden, ActivationForm::Q8_32, narrow.at()});
  cuda_ops().quantize(gpu().stream, {x_card.at(), tokens, hidden, hidden, ActivationForm::Q8_256, wide.at()});
  const TestActivations narrow_cpu(ActivationForm::Q8_32, x, tokens, hidden), wide_cpu(ActivationForm::Q8_256, x, tokens, hidden);
  std::vector<std::array<BlockType, 3>> mixes = {{BlockType::IQ1_S, BlockType::IQ1_M, BlockType::Q4_0}};
  for (const BlockTypeInfo& type : all_block_types())
    if (!kEmulatedCard || type.type == BlockType::Q5_0 || type.type == BlockType::Q2_K || type.type == BlockType::BF16)
      mixes.push_back({type.type, type.type, type.type});
  for (const auto& mix : mixes) {
    CAPTURE(std::string(info(mix[0]).name));
    const TestMatrix gate(mix[0], ffn, hidden, 0.05f, rng), up(mix[1], ffn, hidden, 0.05f, rng), down(mix[2], hidden, ffn, 0.05f, rng);
    auto on_card = [](const TestMatrix& m) {
      return info(m.type).block_weights == 1 ? m.blocks : packed(m.type, m.rows, m.cols, m.blocks.data());
    };
    OnCard<std::byte> gate_card(on_card(gate)), up_card(on_card(up)), down_card(on_card(down));
    // One token, three, twenty.
    std::vector<i32> rows, to;
    for (i32 t = 0; t < 24; t++) rows.push_back(39 - t), to.push_back((t * 7) % 24);
    OnCard<i32> rows_card(rows), to_card(to);
    std::vector<ExpertWork> here, there;
    i64 first = 0;
    for (i64 count : {1, 3, 20}) {
      here.push_back({gate.view(), up.view(), down.view(), rows.data() + first, to.data() + first, count});
      there.push_back({{gate_card.at(), mix[0], ffn, hidden}, {up_card.at(), mix[1], ffn, hidden},
                       {down_card.at(), mix[2], hidden, ffn}, rows_card.at(first), to_card.at(first), count});
      first += count;
    }
    const i64 scratch_bytes = expert_scratch_bytes(24, ffn);
    std::vector<std::byte> scratch(static_cast<size_t>(scratch_bytes));
    OnCard<std::byte> scratch_card(scratch_bytes);
    std::vector<f32> want(static_cast<size_t>(24 * hidden));
    OnCard<f32> out(24 * hidden);
    cpu_ops().expert_ffn(twins.stream, {here, x.data(), narrow_cpu.bytes.data(), wide_cpu.bytes.data(), hidden, ffn,
                                        want.data(), scratch.data(), scratch_bytes, false});
    cuda_ops().expert_ffn(gpu().stream, {there, x_card.at(), narrow.at(), wide.at(), hidden, ffn, out.at(),
                                         scratch_card.at(), scratch_bytes, false});
    // The inner rows are rounded to 8 bits, where the last bit of a float may turn a code.
    CHECK(relative_error(out.read(), want) < 4e-3);
    scratch_card.read();
  }
}

TEST_CASE("gpu: norm, sums, 8-bit rows and router agree with the twins") {
  Rng rng(3);
  Twins twins;
  const i64 rows = 9, cols = 1536;
  const std::vector<f32> x = normals(rows * cols, 2, rng), weight = normals(cols, 1, rng);
  OnCard<f32> x_card(x), weight_card(weight), y(rows * cols);
  std::vector<f32> want(x.size());
  cpu_ops().rms_norm(twins.stream, {x.data(), weight.data(), want.data(), rows, cols, cols, cols, 1e-6f});
  cuda_ops().rms_norm(gpu().stream, {x_card.at(), weight_card.at(), y.at(), rows, cols, cols, cols, 1e-6f});
  CHECK(relative_error(y.read(), want) < 1e-6);

  OnCard<f32> stream(x), change(x);
  OnCard<std::byte> narrow(rows * cuda::card_row_bytes(ActivationForm::Q8_32, cols));
  cuda_ops().rms_norm(gpu().stream, {.x = change.at(), .weight = weight_card.at(), .y = change.at(), .rows = rows, .cols = cols,
                                     .x_stride = cols, .y_stride = cols, .epsilon = 1e-6f, .residual = stream.at(),
                                     .y_q8_32 = narrow.at()});
  std::vector<f32> expected = x;
  cpu_ops().rms_norm(twins.stream, {.x = x.data(), .weight = weight.data(), .y = want.data(), .rows = rows, .cols = cols,
                                    .x_stride = cols, .y_stride = cols, .epsilon = 1e-6f, .residual = expected.data()});
  CHECK(differing(stream.read(), expected) == 0);
  CHECK(relative_error(change.read(), want) < 1e-6);
  OnCard<std::byte> narrow_again(rows * cuda::card_row_bytes(ActivationForm::Q8_32, cols));
  cuda_ops().quantize(gpu().stream, {change.at(), rows, cols, cols, ActivationForm::Q8_32, narrow_again.at()});
  CHECK(differing(narrow.read(), narrow_again.read()) == 0);

  const i64 top_k = 8;
  const std::vector<f32> outputs = normals(rows * top_k * cols, 1, rng), weights = normals(rows * top_k, 1, rng);
  OnCard<f32> outputs_card(outputs), weights_card(weights), residual(x);
  expected = x;
  cpu_ops().combine(twins.stream, {outputs.data(), weights.data(), x.data(), expected.data(), rows, top_k, cols});
  cuda_ops().combine(gpu().stream, {outputs_card.at(), weights_card.at(), x_card.at(), residual.at(), rows, top_k, cols});
  cuda_ops().add(gpu().stream, residual.at(), x_card.at(), rows * cols);
  cpu_ops().add(twins.stream, expected.data(), x.data(), rows * cols);
  CHECK(relative_error(residual.read(), expected) < 1e-6);

  for (ActivationForm form : {ActivationForm::Q8_32, ActivationForm::Q8_256}) {
    std::vector<std::byte> q(static_cast<size_t>(rows * activation_row_bytes(form, cols)));
    cpu_ops().quantize(twins.stream, {x.data(), rows, cols, cols, form, q.data()});
    const CardRows rows_want = card_rows(q.data(), rows, cols, activation_row_bytes(form, cols), form);
    OnCard<std::byte> q_card(rows_want.bytes);  // so that the bytes between rows are the same
    cuda_ops().quantize(gpu().stream, {x_card.at(), rows, cols, cols, form, q_card.at()});
    CHECK(differing(q_card.read(), rows_want.bytes) == 0);
  }

  for (bool ties : {false, true}) {
    const i64 experts = 256;
    std::vector<f32> logits = normals(rows * experts, 1, rng), bias = normals(experts, 0.1f, rng);
    if (ties) std::fill(bias.begin(), bias.end(), 0.5f), std::fill(logits.begin(), logits.end(), 1.0f);
    std::vector<i32> ids(static_cast<size_t>(rows * top_k));
    std::vector<f32> shares(ids.size());
    OnCard<f32> logits_card(logits), bias_card(bias), shares_card(rows * top_k);
    OnCard<i32> ids_card(rows * top_k);
    RouteArgs args{logits.data(), rows, experts, top_k, bias.data(), true, true, 2.5f, 8, 4, false, ids.data(), shares.data()};
    cpu_ops().route(twins.stream, args);
    args.logits = logits_card.at();
    args.bias = bias_card.at();
    args.ids = ids_card.at();
    args.weights = shares_card.at();
    cuda_ops().route(gpu().stream, args);
    CHECK(differing(ids_card.read(), ids) == 0);
    CHECK(relative_error(shares_card.read(), shares) < 1e-6);
  }
}

TEST_CASE("gpu: rows of attention are normed, rotated and kept, more sequences than a launch takes along") {
  Rng rng(6);
  Twins twins;
  const i64 rows = 67, heads = 17, nope = 128, rope = 64, latent = 512, width = latent + rope;
  std::vector<i32> positions;
  std::vector<f32> frequencies;
  for (i32 r = 0; r < rows; r++) positions.push_back(r * 2011);
  for (i32 i = 0; i < 32; i++) frequencies.push_back(std::pow(10000.0f, -static_cast<f32>(i) / 32));
  const std::vector<f32> kv = normals(rows * width, 3, rng), q = normals(rows * heads * (nope + rope), 1, rng), weight = normals(latent, 1, rng);
  OnCard<i32> positions_card(positions);
  OnCard<f32> frequencies_card(frequencies), weight_card(weight);
  for (CacheType type : {CacheType::F16, CacheType::F32, CacheType::Q8_0}) {
    std::vector<f32> want_kv = kv, want_q = q;
    OnCard<f32> kv_card(kv), q_card(q);
    std::vector<std::byte> cache(static_cast<size_t>(cache_bytes(type, rows * width)));
    OnCard<std::byte> cache_card(static_cast<i64>(cache.size()));
    std::vector<AttentionRowsArgs::Run> here, there;
    for (i64 r = 0; r < rows; r += r == 60 ? 2 : 1) {  // 66 runs, one of two rows
      const i64 count = r == 60 ? 2 : 1, at = cache_bytes(type, (rows - r - count) * width);
      here.push_back({cache.data() + at, r, count});
      there.push_back({cache_card.at(at), r, count});
    }
    AttentionRowsArgs args{want_kv.data(), weight.data(), 1e-6f, want_q.data(), rows, heads, nope, rope, latent, positions.data(),
                           frequencies.data(), type, here};
    cpu_ops().attention_rows(twins.stream, args);
    args = {kv_card.at(), weight_card.at(), 1e-6f, q_card.at(), rows, heads, nope, rope, latent, positions_card.at(),
            frequencies_card.at(), type, there};
    cuda_ops().attention_rows(gpu().stream, args);
    const std::vector<f32> got = kv_card.read();
    CHECK(relative_error(got, want_kv) < 1e-6);
    CHECK(relative_error(q_card.read(), want_q) < 1e-6);
    for (const AttentionRowsArgs::Run& run : here)
      cpu_ops().store_latents(twins.stream, {got.data() + run.first_row * width, type, run.cache, run.rows, width});
    CHECK(differing(cache_card.read(), cache) == 0);
  }
}

TEST_CASE("gpu: rows that are handed over are there when the flag is") {
  MappedFlag flag(*gpu().device);
  PinnedBuffer here(*gpu().device, 64 * kKiB, "a test", PinnedUse::mapped);
  REQUIRE(flag.usable());
  for (i64 trial = 0; trial < (kEmulatedCard ? 3 : 1000); trial++) {
    std::vector<u8> bytes(40000);
    for (size_t i = 0; i < bytes.size(); i++) bytes[i] = static_cast<u8>(i * 31 + static_cast<size_t>(trial));
    OnCard<u8> there(bytes);
    HandOverArgs args{.flag = flag.at_device(), .value = flag.next()};
    args.pieces[args.count++] = {there.at(), here.mapped().as<void>(), 28740};
    args.pieces[args.count++] = {there.at(28740), (here.mapped() + 30002).as<void>(), 11260};
    cuda_ops().hand_over(gpu().stream, args);
    const Status status = flag.wait(*gpu().native);
    REQUIRE_MESSAGE(status.ok(), status.message());
    CHECK(std::memcmp(here.as<u8>(), bytes.data(), 28740) == 0);
    CHECK(std::memcmp(here.as<u8>() + 30002, bytes.data() + 28740, 11260) == 0);
  }
}

TEST_CASE("gpu: packing and its inverse, decoding of rows, the largest logit and job lists") {
  Rng rng(4);
  for (const BlockTypeInfo& type : all_block_types()) {
    CAPTURE(std::string(type.name));
    const TestMatrix w(type.type, 37, 512, 0.1f, rng);
    std::vector<std::byte> shifted(w.blocks.size() + 4);
    const i64 shift = type.block_weights == 1 ? 4 : 2;
    std::copy(w.blocks.begin(), w.blocks.end(), shifted.begin() + shift);
    OnCard<std::byte> file(shifted);
    OnCard<f32> floats(37 * 512);
    cuda_ops().dequantize(gpu().stream, type.type, file.at(shift), floats.at(), 37 * 512);
    CHECK(differing(floats.read(), w.values) == 0);
    if (type.block_weights == 1) continue;
    const std::vector<std::byte> want = packed(type.type, 37, 512, w.blocks.data());
    OnCard<std::byte> to(static_cast<i64>(want.size()));
    cuda_ops().pack(gpu().stream, {type.type, 37, 512, file.at(shift), to.at()});
    CHECK(differing(to.read(), want) == 0);
    OnCard<std::byte> back(static_cast<i64>(shifted.size()));
    cuda_ops().unpack(gpu().stream, {type.type, 37, 512, to.at(), back.at(shift)});
    const std::vector<std::byte> again = back.read();
    CHECK(std::equal(w.blocks.begin(), w.blocks.end(), again.begin() + shift));
  }
  const cuda::Target target = cuda::target_of(gpu().stream);
  std::vector<f32> logits = normals(2 * 129280, 1, rng);
  logits[77] = logits[100000] = 20;
  logits[129280 + 129279] = 30;
  OnCard<f32> logits_card(logits);
  OnCard<i32> best(2);
  cuda::start_argmax({logits_card.at(), 2, 129280, best.at()}, target.card, target.stream);
  CHECK(best.read() == std::vector<i32>{77, 129279});

  const std::byte* here = reinterpret_cast<const std::byte*>(u64{256});
  OnCard<cuda::ExpertPointers> table(std::vector<cuda::ExpertPointers>{{here, here, here}, {nullptr, nullptr, nullptr}, {here, here, here}});
  OnCard<i32> ids(std::vector<i32>{2, 1, 0, 2}), count(1), tokens_of(4), ranks_of(4);
  OnCard<cuda::MatvecJob> gate_up(4), down(4);
  cuda::start_job_list({table.at(), ids.at(), 2, 2, 3, gate_up.at(), down.at(), count.at(), tokens_of.at(), ranks_of.at()},
                       target.card, target.stream);
  CHECK(count.read() == std::vector<i32>{2});
  CHECK(gate_up.read()[1].tokens == 2);
  CHECK(down.read()[0].tokens == 1);
  CHECK(ranks_of.read()[0] == 2);
}

TEST_CASE("gpu: latent attention and a prompt's, over short and long contexts") {
  Rng rng(5);
  Twins twins;
  const i64 latent = 512, rope = 64, nope = 128, v = 128, row = latent + rope;
  const std::vector<i64> some_heads = kEmulatedCard ? std::vector<i64>{3, 17} : std::vector<i64>{5, 16, 128};
  for (CacheType type : {CacheType::F16, CacheType::Q8_0})
    for (i64 heads : some_heads) {
      CAPTURE(heads);
      const i64 longest = kEmulatedCard ? 390 : 3001;
      const std::vector<f32> latents = normals(longest * row, 1, rng);
      std::vector<std::byte> cache(static_cast<size_t>(cache_bytes(type, longest * row)));
      cpu_ops().store_latents(twins.stream, {latents.data(), type, cache.data(), longest, row});
      OnCard<std::byte> cache_card(cache);
      const std::vector<i64> lengths = {1, 33, longest};
      const i64 tokens = 3;
      const std::vector<f32> q = normals(tokens * heads * latent, 1, rng), q_rope = normals(tokens * heads * rope, 1, rng);
      std::vector<LatentAttentionArgs::Query> queries, queries_card;
      for (i64 length : lengths) {
        queries.push_back({cache.data(), length});
        queries_card.push_back({cache_card.at(), length});
      }
      const i64 chunk = kEmulatedCard ? 9 : 37, first = kEmulatedCard ? 60 : 400;
      const i64 bytes = latent_attention_scratch_bytes(twins.pool.size(), tokens, heads, latent, rope, longest);
      const i64 card_bytes = cuda_ops().attention_scratch_bytes({.rows = chunk, .generated = tokens, .context = longest,
                                                                 .heads = heads, .nope = nope, .rope = rope, .latent = latent,
                                                                 .v = v, .cache = type});
      std::vector<std::byte> scratch(static_cast<size_t>(bytes));
      OnCard<std::byte> scratch_card(card_bytes);
      OnCard<f32> q_card(q), q_rope_card(q_rope), out(tokens * heads * latent);
      std::vector<f32> want(static_cast<size_t>(tokens * heads * latent));
      const f32 scale = 1.0f / std::sqrt(static_cast<f32>(row));
      LatentAttentionArgs args{type, queries, q.data(), q_rope.data(), heads * rope, rope, want.data(), heads, latent, rope,
                               scale, scratch.data(), bytes};
      cpu_ops().latent_attention(twins.stream, args);
      args = {type, queries_card, q_card.at(), q_rope_card.at(), heads * rope, rope, out.at(), heads, latent, rope, scale,
              scratch_card.at(), card_bytes};
      OnCard<std::byte> eight(tokens * heads * cuda::card_row_bytes(ActivationForm::Q8_256, latent));
      OnCard<std::byte> eight_again(tokens * heads * cuda::card_row_bytes(ActivationForm::Q8_256, latent));
      args.out_quantized = eight.at();
      args.out_form = ActivationForm::Q8_256;
      cuda_ops().latent_attention(gpu().stream, args);
      CHECK(relative_error(out.read(), want) < 0x1p-8);
      cuda_ops().quantize(gpu().stream, {out.at(), tokens * heads, latent, latent, ActivationForm::Q8_256, eight_again.at()});
      CHECK(differing(eight.read(), eight_again.read()) == 0);
      scratch_card.read();

      if (heads > 16) continue;
      for (BlockType weights : {BlockType::F16, BlockType::Q8_0}) {
        const TestMatrix k_b(weights, heads * latent, nope, 0.1f, rng), v_b(weights, heads * v, latent, 0.1f, rng);
        auto on_card = [](const TestMatrix& m) {
          return m.type == BlockType::F16 ? m.blocks : packed(m.type, m.rows, m.cols, m.blocks.data());
        };
        OnCard<std::byte> k_card(on_card(k_b)), v_card(on_card(v_b));
        const std::vector<f32> prompt = normals(chunk * heads * (nope + rope), 1, rng);
        OnCard<f32> prompt_card(prompt), prompt_out(chunk * heads * v);
        std::vector<f32> prompt_want(static_cast<size_t>(chunk * heads * v));
        const i64 more = prompt_attention_scratch_bytes(std::max(8, twins.pool.size()), chunk, nope, rope, latent, v);
        std::vector<std::byte> prompt_scratch(static_cast<size_t>(more));
        PromptAttentionArgs p{.q = prompt.data(), .cache = cache.data(), .cache_type = type, .first = first, .tokens = chunk,
                              .k_b = {k_b.blocks.data(), weights, latent, nope},
                              .k_b_head_stride_bytes = latent * row_bytes(weights, nope),
                              .v_b = {v_b.blocks.data(), weights, v, latent},
                              .v_b_head_stride_bytes = v * row_bytes(weights, latent), .out = prompt_want.data(),
                              .heads = heads, .nope = nope, .rope = rope, .latent = latent, .v = v, .scale = 0.07f,
                              .scratch = prompt_scratch.data(), .scratch_bytes = more};
        cpu_ops().prompt_attention(twins.stream, p);
        p.q = prompt_card.at();
        p.cache = cache_card.at();
        p.k_b.data = k_card.at();
        p.v_b.data = v_card.at();
        p.out = prompt_out.at();
        p.scratch = scratch_card.at();
        p.scratch_bytes = card_bytes;
        cuda_ops().prompt_attention(gpu().stream, p);
        // Q8_0: queries and results are rounded to 8 bits, which the CPU's form does not do.
        CHECK(relative_error(prompt_out.read(), prompt_want) < (weights == BlockType::F16 ? 0x1p-8 : 0x1p-5));
        scratch_card.read();
      }
    }
}
