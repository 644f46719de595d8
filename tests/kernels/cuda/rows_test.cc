// Row kernels on an emulated card against the CPU's ops at the level of the twins.
#include <doctest/doctest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/cuda/attention_rows.h"
#include "kernels/cuda/file_rows.h"
#include "kernels/cuda/float_matvec.h"
#include "kernels/cuda/hand_over.h"
#include "kernels/cuda/job_list.h"
#include "kernels/cuda/route.h"
#include "kernels/cuda/rows.h"
#include "tests/kernels/cpu/op_inputs.h"
#include "tests/kernels/cuda/card_rows.h"
#include "tests/kernels/cuda/emulated_gpu.h"
#include "tests/support/canary.h"

using namespace stoker;
using namespace stoker::cuda;
using namespace stoker::test;

namespace {

struct Twins {
  WorkerPool pool{{.workers = 1, .pin = false}};
  Stream stream{pool, IsaLevel::ref};
};

i64 differing(const f32* a, const f32* b, i64 count) {
  i64 result = 0;
  for (i64 i = 0; i < count; i++) result += std::bit_cast<u32>(a[i]) != std::bit_cast<u32>(b[i]);
  return result;
}

constexpr i64 kWarpFloats = kRowWarps * 4;

}  // namespace

TEST_CASE("activations are quantised to the twin's numbers") {
  Twins twins;
  Rng rng(1);
  for (ActivationForm form : {ActivationForm::Q8_32, ActivationForm::Q8_256})
    for (i64 blocks : {1, 3, 9}) {
      const i64 cols = blocks * (form == ActivationForm::Q8_32 ? 32 : 256), rows = 5, stride = cols + 3;
      std::vector<f32> x = normals(rows * stride, 2, rng);
      for (i64 i = 0; i < cols; i++) x[static_cast<size_t>(i)] = 0;                             // a row of zeros
      x[static_cast<size_t>(stride + 7)] = 1e30f;                                               // an outlier
      x[static_cast<size_t>(2 * stride + 5)] = INFINITY;                                        // not finite
      for (i64 i = 0; i < cols; i++) x[static_cast<size_t>(3 * stride + i)] = i % 2 ? 1e-38f : 2.5f / 127;  // ties, tiny
      std::vector<std::byte> want(static_cast<size_t>(rows * activation_row_bytes(form, cols)));
      cpu_ops().quantize(twins.stream, {.x = x.data(), .rows = rows, .cols = cols, .x_stride = stride, .form = form,
                                        .out = want.data()});
      const CardRows expected = card_rows(want.data(), rows, cols, activation_row_bytes(form, cols), form);
      CanaryBuffer<std::byte> got(rows * expected.stride_bytes);
      const i64 used = cols / (form == ActivationForm::Q8_32 ? 32 : 256) * (form == ActivationForm::Q8_32 ? 40 : 292);
      for (i64 r = 0; r < rows; r++)
        for (i64 i = 0; i < used; i++) got.expect_write(r * expected.stride_bytes + i);
      emulate({2, kRowThreads, 0}, [&](const EmulatedThread& thread) {
        quantize_rows(thread, {.x = x.data(), .rows = rows, .cols = cols, .x_stride = stride, .form = form,
                               .out = got.data()}, expected.stride_bytes);
      });
      CHECK(got.first_damaged() == CanaryBuffer<std::byte>::kNone);
      for (i64 r = 0; r < rows; r++) {
        const i64 at = r * expected.stride_bytes;
        CHECK(std::memcmp(got.data() + at, expected.bytes.data() + at, static_cast<size_t>(used)) == 0);
      }
    }
}

TEST_CASE("norm and sums agree with the twins") {
  Twins twins;
  Rng rng(2);
  const i64 rows = 5, cols = 515;
  std::vector<f32> x = normals(rows * cols, 3, rng), weight = normals(cols, 1, rng);
  std::vector<f32> want(x.size());
  CanaryBuffer<f32> y(rows * cols);
  for (i64 i = 0; i < y.count(); i++) y.expect_write(i);
  RmsNormArgs norm{x.data(), weight.data(), want.data(), rows, cols, cols, cols, 1e-6f};
  cpu_ops().rms_norm(twins.stream, norm);
  norm.y = y.data();
  emulate({3, kNormThreads, kNormThreads / 8}, [&](const EmulatedThread& t) { rms_norm_rows(t, norm, 0, 0); });
  // A sum of `cols` rounded squares in another order, then two products.
  for (i64 i = 0; i < y.count(); i++)
    CHECK(std::abs(y.data()[i] - want[static_cast<size_t>(i)]) <= 64 * 0x1p-24f * std::abs(want[static_cast<size_t>(i)]));
  CHECK(y.first_damaged() == CanaryBuffer<f32>::kNone);

  for (bool shared : {false, true}) {
    const i64 top_k = 3;
    std::vector<f32> outputs = normals(rows * top_k * cols, 1, rng), weights = normals(rows * top_k, 1, rng);
    std::vector<f32> residual = x, expected = x;
    CombineArgs combine{outputs.data(), weights.data(), shared ? x.data() : nullptr, expected.data(), rows, top_k, cols};
    cpu_ops().combine(twins.stream, combine);
    combine.residual = residual.data();
    emulate({3, kRowThreads, 0}, [&](const EmulatedThread& t) { combine_rows(t, combine); });
    CHECK(differing(residual.data(), expected.data(), rows * cols) == 0);
  }

  std::vector<f32> sum = x, expected_sum = x;
  cpu_ops().add(twins.stream, expected_sum.data(), want.data(), rows * cols);
  emulate({2, kRowThreads, 0}, [&](const EmulatedThread& t) { add_rows(t, sum.data(), want.data(), rows * cols); });
  CHECK(differing(sum.data(), expected_sum.data(), rows * cols) == 0);

  std::vector<f32> gate = x;
  const SiluArgs silu_args{gate.data(), want.data(), rows * cols};
  emulate({2, kRowThreads, 0}, [&](const EmulatedThread& t) { silu_rows(t, silu_args); });
  for (i64 i = 0; i < rows * cols; i++) {
    const f32 g = x[static_cast<size_t>(i)], wanted = g / (1.0f + std::exp(-g)) * want[static_cast<size_t>(i)];
    CHECK(std::bit_cast<u32>(gate[static_cast<size_t>(i)]) == std::bit_cast<u32>(wanted));
  }
}

TEST_CASE("a norm adds what comes before it and makes 8-bit rows as if each were a launch of its own") {
  Rng rng(7);
  const i64 rows = 4;
  for (i64 cols : {32, 288, 512, 1536})
    for (bool adds : {false, true})
      for (int forms = 1; forms < (cols % 256 == 0 ? 4 : 2); forms++) {
        CAPTURE(cols);
        const i64 narrow_bytes = round_up(activation_row_bytes(ActivationForm::Q8_32, cols), kDeviceRowAlignment);
        const i64 wide_bytes = round_up(activation_row_bytes(ActivationForm::Q8_256, cols / 256 * 256), kDeviceRowAlignment);
        const std::vector<f32> x = normals(rows * cols, 3, rng), weight = normals(cols, 1, rng);
        std::vector<f32> stream = normals(rows * cols, 3, rng), want_stream = stream, y = x, want_y(x.size());
        std::vector<std::byte> narrow(static_cast<size_t>(rows * narrow_bytes)), want_narrow = narrow;
        std::vector<std::byte> wide(static_cast<size_t>(rows * wide_bytes)), want_wide = wide;
        emulate({2, kRowThreads, 0}, [&](const EmulatedThread& t) { add_rows(t, want_stream.data(), x.data(), rows * cols); });
        const RmsNormArgs norm{adds ? want_stream.data() : x.data(), weight.data(), want_y.data(), rows, cols, cols, cols, 1e-6f};
        emulate({3, kRowThreads, kWarpFloats}, [&](const EmulatedThread& t) { rms_norm_rows(t, norm, 0, 0); });
        for (ActivationForm form : {ActivationForm::Q8_32, ActivationForm::Q8_256}) {
          const bool is_narrow = form == ActivationForm::Q8_32;
          if ((forms & (is_narrow ? 1 : 2)) == 0) continue;
          const QuantizeArgs q{want_y.data(), rows, cols, cols, form, is_narrow ? want_narrow.data() : want_wide.data()};
          emulate({2, kRowThreads, 0}, [&](const EmulatedThread& t) { quantize_rows(t, q, is_narrow ? narrow_bytes : wide_bytes); });
        }
        // In place, as attention's change becomes the norm.
        RmsNormArgs all{y.data(), weight.data(), y.data(), rows, cols, cols, cols, 1e-6f};
        if (adds) all.residual = stream.data();
        if (forms & 1) all.y_q8_32 = narrow.data();
        if (forms & 2) all.y_q8_256 = wide.data();
        emulate({3, kRowThreads, kWarpFloats}, [&](const EmulatedThread& t) { rms_norm_rows(t, all, narrow_bytes, wide_bytes); });
        CHECK(differing(y.data(), want_y.data(), rows * cols) == 0);
        if (adds) CHECK(differing(stream.data(), want_stream.data(), rows * cols) == 0);
        CHECK(narrow == want_narrow);
        CHECK(wide == want_wide);
      }
}

TEST_CASE("latents, keys and queries are normed, rotated and kept as by the twins") {
  Twins twins;
  Rng rng(8);
  const i64 rows = 5, heads = 19, nope = 10;
  const std::vector<i32> positions = {0, 1, 77, 4096, 163839};
  for (CacheType type : {CacheType::F16, CacheType::F32, CacheType::Q8_0})
    for (i64 rope : {2, 64}) {
      const i64 latent = 96 - rope, width = 96, key = nope + rope;
      std::vector<f32> frequencies;
      for (i64 i = 0; i < rope / 2; i++) frequencies.push_back(std::pow(10000.0f, -static_cast<f32>(2 * i) / static_cast<f32>(rope)));
      std::vector<f32> kv = normals(rows * width, 30, rng), want_kv = kv, q = normals(rows * heads * key, 1, rng), want_q = q;
      const std::vector<f32> weight = normals(latent, 1, rng);
      const i64 row_bytes = cache_bytes(type, width);
      // Three sequences, the second of three rows, each with a cache of its own.
      const std::vector<std::array<i64, 2>> parts = {{0, 1}, {1, 3}, {4, 1}};
      std::vector<std::byte> stored(static_cast<size_t>(rows * row_bytes)), want_stored = stored;
      auto runs = [&](std::vector<std::byte>& cache) {
        std::vector<AttentionRowsArgs::Run> list;
        for (const auto& [first, count] : parts) list.push_back({cache.data() + (rows - first - count) * row_bytes, first, count});
        return list;
      };
      const std::vector<AttentionRowsArgs::Run> here = runs(stored), there = runs(want_stored);
      AttentionRowsArgs args{want_kv.data(), weight.data(), 1e-6f, want_q.data(), rows, heads, nope, rope, latent, positions.data(),
                             frequencies.data(), type, there};
      cpu_ops().attention_rows(twins.stream, args);
      args.kv = kv.data();
      args.q = q.data();
      AttentionRuns launched{};
      for (const AttentionRowsArgs::Run& run : here) launched.at[launched.count++] = run;
      emulate({4, kRowThreads, kWarpFloats}, [&](const EmulatedThread& t) { attention_rows(t, args, launched); });
      CHECK(differing(q.data(), want_q.data(), rows * heads * key) == 0);
      for (i64 r = 0; r < rows; r++)
        for (i64 i = 0; i < width; i++) {
          const f32 got = kv[static_cast<size_t>(r * width + i)], want = want_kv[static_cast<size_t>(r * width + i)];
          CHECK(std::abs(got - want) <= (i < latent ? 64 * 0x1p-24f * std::abs(want) : 0.0f));
        }
      // What is kept is what the twin would keep of these floats.
      for (size_t i = 0; i < here.size(); i++)
        cpu_ops().store_latents(twins.stream, {kv.data() + here[i].first_row * width, type, there[i].cache, here[i].rows, width});
      CHECK(stored == want_stored);
    }
}

TEST_CASE("the router chooses what the CPU's chooses, ties and no-numbers included") {
  Twins twins;
  Rng rng(3);
  struct Setting {
    i64 experts, top_k, groups, groups_used;
    bool biased, sigmoid, normalise, max_score;
  };
  for (const Setting& s : {Setting{64, 6, 1, 1, false, false, false, false}, Setting{160, 6, 8, 3, false, false, false, true},
                           Setting{256, 8, 8, 4, true, true, true, false}, Setting{384, 8, 1, 1, true, true, true, false},
                           Setting{4, 2, 4, 2, true, true, true, false}, Setting{5, 5, 1, 1, false, true, true, false}})
    for (int kind = 0; kind < 3; kind++) {
      const i64 tokens = 4;
      std::vector<f32> logits = normals(tokens * s.experts, 1, rng), bias = normals(s.experts, 0.1f, rng);
      for (i64 i = 0; i < tokens * s.experts; i++) {
        if (kind == 1) logits[static_cast<size_t>(i)] = static_cast<f32>(i % 3);  // ties
        if (kind == 2 && i % 7 == 0) logits[static_cast<size_t>(i)] = NAN;
      }
      if (kind == 1) std::fill(bias.begin(), bias.end(), 0.25f);
      std::vector<i32> want_ids(static_cast<size_t>(tokens * s.top_k));
      std::vector<f32> want(want_ids.size());
      RouteArgs route{logits.data(), tokens, s.experts, s.top_k, s.biased ? bias.data() : nullptr, s.sigmoid, s.normalise,
                      2.5f, s.groups, s.groups_used, s.max_score, want_ids.data(), want.data()};
      cpu_ops().route(twins.stream, route);
      CanaryBuffer<i32> ids(tokens * s.top_k);
      CanaryBuffer<f32> weights(tokens * s.top_k);
      route.ids = ids.data();
      route.weights = weights.data();
      emulate({3, kWarp, route_shared_bytes(s.experts)}, [&](const EmulatedThread& t) { route_tokens(t, route); });
      for (i64 i = 0; i < tokens * s.top_k; i++) {
        ids.expect_write(i);
        weights.expect_write(i);
        CHECK(ids.data()[i] == want_ids[static_cast<size_t>(i)]);
        const f32 got = weights.data()[i], expected = want[static_cast<size_t>(i)];
        CHECK((std::bit_cast<u32>(got) == std::bit_cast<u32>(expected) || (std::isnan(got) && std::isnan(expected))));
      }
      CHECK(ids.first_damaged() == CanaryBuffer<i32>::kNone);
      CHECK(weights.first_damaged() == CanaryBuffer<f32>::kNone);
    }
}

TEST_CASE("rows are handed over whole, wherever they begin, and the word comes behind all of them") {
  alignas(16) std::byte from[3000];
  for (size_t i = 0; i < sizeof from; i++) from[i] = static_cast<std::byte>(i * 7);
  for (int trial = 0; trial < 20; trial++) {
    CanaryBuffer<Sixteen> to(300);
    std::byte* bytes = reinterpret_cast<std::byte*>(to.data());
    const i64 begin[] = {0, 1024, 1502}, length[] = {16 * trial, 7 + trial, 612}, source[] = {16, 17, 1502};
    HandOverArgs args;
    u32 flag = 0, seen = ~0u;
    for (i64 i = 0; i < 3; i++) args.pieces[args.count++] = {from + source[i], bytes + begin[i], length[i]};
    args.pieces[args.count++] = {&flag, &seen, sizeof seen};  // what a piece is when the word is there
    args.flag = &flag;
    args.value = 0x01020304;
    emulate({1, kRowThreads, 0}, [&](const EmulatedThread& t) { hand_over(t, args); });
    CHECK(flag == args.value);
    CHECK(seen == 0);
    for (i64 i = 0; i < 3; i++) CHECK(std::memcmp(bytes + begin[i], from + source[i], static_cast<size_t>(length[i])) == 0);
    for (i64 i = 0; i < to.count(); i++) {
      const i64 at = 16 * i;
      for (i64 p = 0; p < 3; p++)
        if (at + 16 > begin[p] && at < begin[p] + length[p]) to.expect_write(i);
    }
    CHECK(to.first_damaged() == CanaryBuffer<Sixteen>::kNone);
  }
}

TEST_CASE("the largest logit is found, the lowest index of equal ones") {
  Rng rng(4);
  const i64 rows = 4, cols = 1001;
  std::vector<f32> logits = normals(rows * cols, 1, rng);
  logits[500] = logits[17] = 9;
  for (i64 i = 0; i < cols; i++) logits[static_cast<size_t>(cols + i)] = NAN;
  for (i64 i = 0; i < cols; i++) logits[static_cast<size_t>(2 * cols + i)] = -INFINITY;
  logits[static_cast<size_t>(3 * cols + 1000)] = 50;
  std::vector<i32> best(4, -7);
  const ArgmaxArgs args{logits.data(), rows, cols, best.data()};
  emulate({2, kRowThreads, 8 * kRowThreads}, [&](const EmulatedThread& t) { argmax_rows(t, args); });
  CHECK(best == std::vector<i32>{17, 0, 0, 1000});
}

TEST_CASE("the router's choice becomes jobs for the experts that the card has") {
  const i32 ids[] = {3, 1, 1, 4, 0, 3};  // 3 tokens, 2 each
  std::byte weights[15];
  ExpertPointers table[5];
  for (i64 e = 0; e < 5; e++)
    table[e] = {e == 4 ? nullptr : weights + 3 * e, weights + 3 * e + 1, weights + 3 * e + 2};  // 4 is elsewhere
  MatvecJob gate_up[6], down[6];
  i32 count = -1, tokens_of[6], ranks_of[6];
  const JobListArgs args{table, ids, 3, 2, 5, gate_up, down, &count, tokens_of, ranks_of};
  emulate({1, 64, job_list_shared_bytes(5)}, [&](const EmulatedThread& t) { make_job_list(t, args); });
  REQUIRE(count == 3);
  const i64 experts[] = {0, 1, 3}, users[] = {1, 2, 2};
  const std::vector<i32> tokens[] = {{2}, {0, 1}, {0, 2}}, ranks[] = {{4}, {1, 2}, {0, 5}};
  i32 inner = 0;
  for (size_t j = 0; j < 3; j++) {
    CHECK((gate_up[j].first == weights + 3 * experts[j]));
    CHECK((gate_up[j].second == weights + 3 * experts[j] + 1));
    CHECK((down[j].first == weights + 3 * experts[j] + 2));
    CHECK((down[j].second == nullptr));
    CHECK(gate_up[j].tokens == users[j]);
    CHECK(down[j].tokens == users[j]);
    CHECK(gate_up[j].y_first == inner);
    CHECK(down[j].x_first == inner);
    for (size_t t = 0; t < tokens[j].size(); t++) {
      CHECK(gate_up[j].x_rows[t] == tokens[j][t]);
      CHECK(down[j].y_rows[t] == ranks[j][t]);
    }
    inner += gate_up[j].tokens;
  }
}

TEST_CASE("float matrices, one or one per head, multiply within the error of their sums") {
  Rng rng(5);
  auto check = [&]<class Weight>(BlockType type, Weight) {
    for (i64 cols : {1, 64, 130, 255})
      for (i64 matrices : {1, 3}) {
        const i64 rows = 11, tokens = 10;
        const bool lists = matrices == 1;
        const std::vector<i32> backwards = {9, 8, 7, 6, 5, 4, 3, 2, 1, 0};
        TestMatrix w(type, matrices * rows, cols, 1, rng);
        std::vector<f32> x = normals(tokens * matrices * (cols + 1), 1, rng);
        CanaryBuffer<f32> y(tokens * matrices * (rows + 2));
        const FloatMatvecArgs args{.weights = w.blocks.data(), .matrix_stride_bytes = rows * row_bytes(type, cols),
                                   .matrices = matrices, .rows = rows, .cols = cols, .x = x.data(), .x_stride = cols + 1,
                                   .x_rows = lists ? backwards.data() : nullptr, .tokens = tokens, .y = y.data(),
                                   .y_rows = lists ? backwards.data() : nullptr, .y_stride = matrices * (rows + 2),
                                   .y_matrix_stride = rows + 2};
        emulate({2, kWarp * kFloatWarps, 0}, [&](const EmulatedThread& t) { float_matvec<Weight>(t, args); });
        for (i64 t = 0; t < tokens; t++)
          for (i64 h = 0; h < matrices; h++)
            for (i64 r = 0; r < rows; r++) {
              f64 sum = 0, size = 0;
              // Both lists turn the tokens around, so each meets its own row again.
              const i64 row = lists ? tokens - 1 - t : t;
              for (i64 c = 0; c < cols; c++) {
                const f64 term = w.at(h * rows + r, c) * static_cast<f64>(x[static_cast<size_t>((row * matrices + h) * (cols + 1) + c)]);
                sum += term;
                size += std::abs(term);
              }
              const i64 at = (row * matrices + h) * (rows + 2) + r;
              y.expect_write(at);
              CHECK(std::abs(static_cast<f64>(y.data()[at]) - sum) <= static_cast<f64>(cols + 8) * 0x1p-24 * size);
            }
        CHECK(y.first_damaged() == CanaryBuffer<f32>::kNone);
      }
  };
  check(BlockType::F32, WeightF32{});
  check(BlockType::F16, WeightF16{});
  check(BlockType::BF16, WeightBF16{});
}

TEST_CASE("the card packs as the CPU does and undoes it, and rows of the file become the twins' floats") {
  for_each_block_format([]<class Block>(BlockType type) {
    CAPTURE(std::string(info(type).name));
    Rng rng(6);
    const i64 rows = 37, cols = 512;
    const TestMatrix w(type, rows, cols, 0.1f, rng);
    std::vector<std::byte> shifted(w.blocks.size() + 1), want(static_cast<size_t>(packed_bytes(type, rows, cols)));
    std::copy(w.blocks.begin(), w.blocks.end(), shifted.begin() + 1);  // any alignment
    pack_rows(type, rows, cols, w.blocks.data(), want.data());
    CanaryBuffer<std::byte> got(static_cast<i64>(want.size()));
    for (i64 i = 0; i < got.count(); i++) got.expect_write(i);
    const PackArgs pack{shifted.data() + 1, got.data(), rows, cols};
    emulate({2, kWarp * kPackWarps, 0}, [&](const EmulatedThread& t) { pack_matrix<Block>(t, pack); });
    CHECK(std::memcmp(got.data(), want.data(), want.size()) == 0);
    CHECK(got.first_damaged() == CanaryBuffer<std::byte>::kNone);

    CanaryBuffer<std::byte> back(static_cast<i64>(shifted.size()));
    for (i64 i = 1; i < back.count(); i++) back.expect_write(i);
    const PackArgs unpack{got.data(), back.data() + 1, rows, cols};
    emulate({2, kWarp * kPackWarps, 0}, [&](const EmulatedThread& t) { unpack_matrix<Block>(t, unpack); });
    CHECK(std::memcmp(back.data() + 1, w.blocks.data(), w.blocks.size()) == 0);
    CHECK(back.first_damaged() == CanaryBuffer<std::byte>::kNone);

    const std::vector<i32> ids = {36, 0, 5, 5};
    CanaryBuffer<f32> y(4 * cols);
    const FloatRowsArgs floats{shifted.data() + 1, ids.data(), 4, cols, y.data(), decode_books().data()};
    emulate({2, kRowThreads, 0}, [&](const EmulatedThread& t) { float_rows<Block>(t, floats); });
    for (i64 r = 0; r < 4; r++) {
      for (i64 i = 0; i < cols; i++) y.expect_write(r * cols + i);
      CHECK(differing(y.data() + r * cols, w.values.data() + ids[static_cast<size_t>(r)] * cols, cols) == 0);
    }
    CHECK(y.first_damaged() == CanaryBuffer<f32>::kNone);
  });
}
