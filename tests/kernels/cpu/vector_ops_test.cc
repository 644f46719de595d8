// Norms, rotation, sums and conversions over the workers.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <complex>
#include <cstring>

#include "kernels/cpu/leaf.h"
#include "kernels/format/f16.h"
#include "tests/kernels/cpu/op_inputs.h"
#include "tests/support/canary.h"

using namespace stoker;
using namespace stoker::test;

static constexpr i64 kUndamaged = CanaryBuffer<f32>::kNone;

TEST_CASE("norms of rows read and write with their own strides") {
  const i64 rows = 41, cols = 576, x_stride = cols + 3, y_stride = cols + 64;
  Rng rng(1);
  std::vector<f32> x = normals(rows * x_stride, 3, rng), weight = normals(cols, 1, rng);
  SameBits same;
  for_streams([&](Stream& stream, const std::string& where) {
    INFO(where);
    CanaryBuffer<f32> y(rows * y_stride);
    for (i64 r = 0; r < rows; r++)
      for (i64 c = 0; c < cols; c++) y.expect_write(r * y_stride + c);
    cpu_ops().rms_norm(stream, {.x = x.data(),
                                .weight = weight.data(),
                                .y = y.data(),
                                .rows = rows,
                                .cols = cols,
                                .x_stride = x_stride,
                                .y_stride = y_stride,
                                .epsilon = 1e-6f});
    CHECK(y.first_damaged() == kUndamaged);
    Worst worst;
    for (i64 r = 0; r < rows; r++) {
      f64 squares = 0;
      auto at = [&](i64 c) { return static_cast<f64>(x[static_cast<size_t>(r * x_stride + c)]); };
      for (i64 c = 0; c < cols; c++) squares += at(c) * at(c);
      for (i64 c = 0; c < cols; c++) {
        f64 expected =
            at(c) / std::sqrt(squares / cols + 1e-6) * static_cast<f64>(weight[static_cast<size_t>(c)]);
        worst.see(fmt::format("({}, {})", r, c), static_cast<f64>(y.data()[r * y_stride + c]), expected,
                  static_cast<f64>(cols + 8) * kHalfUlp * std::abs(expected));
      }
    }
    CHECK_MESSAGE(worst.share <= 1, worst.text);
    CHECK(same.differing(stream, y.data(), rows * y_stride) == 0);
  });
}

TEST_CASE("a norm that adds first and quantises behind has the bits of the three") {
  const i64 rows = 5, cols = 512;
  Rng rng(7);
  const std::vector<f32> x = normals(rows * cols, 3, rng), weight = normals(cols, 1, rng), before = normals(rows * cols, 3, rng);
  for_streams([&](Stream& stream, const std::string& where) {
    INFO(where);
    auto norm = [&](const f32* from, f32* y) {
      return RmsNormArgs{.x = from, .weight = weight.data(), .y = y, .rows = rows, .cols = cols, .x_stride = cols, .y_stride = cols,
                         .epsilon = 1e-6f};
    };
    std::vector<f32> sum = before, want_sum = before, y = x, want(x.size());
    cpu_ops().add(stream, want_sum.data(), x.data(), rows * cols);
    cpu_ops().rms_norm(stream, norm(want_sum.data(), want.data()));
    std::vector<std::byte> narrow(static_cast<size_t>(rows * activation_row_bytes(ActivationForm::Q8_32, cols)));
    std::vector<std::byte> wide(static_cast<size_t>(rows * activation_row_bytes(ActivationForm::Q8_256, cols)));
    std::vector<std::byte> got_narrow = narrow, got_wide = wide;
    cpu_ops().quantize(stream, {want.data(), rows, cols, cols, ActivationForm::Q8_32, narrow.data()});
    cpu_ops().quantize(stream, {want.data(), rows, cols, cols, ActivationForm::Q8_256, wide.data()});
    RmsNormArgs all = norm(y.data(), y.data());
    all.residual = sum.data();
    all.y_q8_32 = got_narrow.data();
    all.y_q8_256 = got_wide.data();
    cpu_ops().rms_norm(stream, all);
    CHECK(sum == want_sum);
    CHECK(y == want);
    CHECK(got_narrow == narrow);
    CHECK(got_wide == wide);
  });
}

TEST_CASE("rotation turns pairs by position times frequency, the rest is left alone, latents are normed, all is kept") {
  const i64 rows = 9, heads = 3, rope = 10, nope = 7, latent = 22, key = nope + rope, width = latent + rope;
  Rng rng(2);
  const std::vector<f32> q = normals(rows * heads * key, 1, rng), kv = normals(rows * width, 1, rng), weight = normals(latent, 1, rng);
  std::vector<i32> positions = {0, 1, 2, 5, 77, 4095, 100000, 163839, 7};
  std::vector<f32> frequencies = {1.0f, 0.3f, 0.05f, 1e-3f, 2.5e-6f};
  SameBits same;
  for_streams([&](Stream& stream, const std::string& where) {
    INFO(where);
    CanaryBuffer<f32> q_there(rows * heads * key), kv_there(rows * width), cache(rows * width);
    std::memcpy(q_there.data(), q.data(), sizeof(f32) * q.size());
    std::memcpy(kv_there.data(), kv.data(), sizeof(f32) * kv.size());
    for (CanaryBuffer<f32>* buffer : {&q_there, &kv_there, &cache})
      for (i64 i = 0; i < buffer->count(); i++) buffer->expect_write(i);
    const AttentionRowsArgs::Run runs[] = {{cache.data() + 5 * width, 0, 4}, {cache.data(), 4, 5}};
    cpu_ops().attention_rows(stream, {.kv = kv_there.data(),
                                      .kv_weight = weight.data(),
                                      .epsilon = 1e-6f,
                                      .q = q_there.data(),
                                      .rows = rows,
                                      .heads = heads,
                                      .nope = nope,
                                      .rope = rope,
                                      .latent = latent,
                                      .positions = positions.data(),
                                      .frequencies = frequencies.data(),
                                      .cache_type = CacheType::F32,
                                      .runs = runs});
    for (CanaryBuffer<f32>* buffer : {&q_there, &kv_there, &cache}) CHECK(buffer->first_damaged() == kUndamaged);
    Worst worst;
    i64 touched = 0;
    // The last `rope` of `count` numbers of this row.
    auto check = [&](const f32* from, const f32* turned, i64 count, i64 row) {
      for (i64 i = 0; i < rope / 2; i++) {
        const i64 at = count - rope + 2 * i;
        std::complex<f64> turn = std::polar(1.0, static_cast<f64>(positions[static_cast<size_t>(row)]) *
                                                     static_cast<f64>(frequencies[static_cast<size_t>(i)]));
        std::complex<f64> pair(static_cast<f64>(from[at]), static_cast<f64>(from[at + 1]));
        std::complex<f64> expected = pair * turn;
        worst.see("real part", static_cast<f64>(turned[at]), expected.real(), 4 * kHalfUlp * std::abs(pair) * 2);
        worst.see("imaginary part", static_cast<f64>(turned[at + 1]), expected.imag(), 4 * kHalfUlp * std::abs(pair) * 2);
      }
    };
    for (i64 r = 0; r < rows; r++) {
      for (i64 h = 0; h < heads; h++) {
        const i64 at = (r * heads + h) * key;
        check(q.data() + at, q_there.data() + at, key, r);
        touched += std::memcmp(q.data() + at, q_there.data() + at, sizeof(f32) * nope) != 0;
      }
      check(kv.data() + r * width, kv_there.data() + r * width, width, r);
    }
    CHECK_MESSAGE(worst.share <= 1, worst.text);
    CHECK(touched == 0);
    std::vector<f32> normed(static_cast<size_t>(rows * latent));
    cpu_ops().rms_norm(stream, {.x = kv.data(), .weight = weight.data(), .y = normed.data(), .rows = rows, .cols = latent,
                                .x_stride = width, .y_stride = latent, .epsilon = 1e-6f});
    for (i64 r = 0; r < rows; r++)
      CHECK(std::memcmp(normed.data() + r * latent, kv_there.data() + r * width, sizeof(f32) * latent) == 0);
    CHECK(std::memcmp(cache.data() + 5 * width, kv_there.data(), static_cast<size_t>(4 * width) * sizeof(f32)) == 0);
    CHECK(std::memcmp(cache.data(), kv_there.data() + 4 * width, static_cast<size_t>(5 * width) * sizeof(f32)) == 0);
    CHECK(same.differing(stream, q_there.data(), q_there.count()) == 0);
  });
}

TEST_CASE(
    "combine adds the ranks in order, then the shared expert, with the same bits for one token and many") {
  const i64 tokens = 7, top_k = 6, hidden = 2100;
  Rng rng(3);
  std::vector<f32> rows = normals(tokens * top_k * hidden, 1, rng), weights = normals(tokens * top_k, 1, rng);
  std::vector<f32> shared = normals(tokens * hidden, 1, rng), residual = normals(tokens * hidden, 1, rng);
  for (bool with_shared : {false, true}) {
    SameBits same;
    for_streams([&](Stream& stream, const std::string& where) {
      INFO(where << (with_shared ? ", shared" : ""));
      CanaryBuffer<f32> y(tokens * hidden);
      for (i64 i = 0; i < y.count(); i++) y.expect_write(i);
      std::memcpy(y.data(), residual.data(), sizeof(f32) * residual.size());
      auto combine = [&](i64 first, i64 count, f32* out) {
        cpu_ops().combine(stream, {.rows = rows.data() + first * top_k * hidden,
                                   .weights = weights.data() + first * top_k,
                                   .shared = with_shared ? shared.data() + first * hidden : nullptr,
                                   .residual = out,
                                   .tokens = count,
                                   .top_k = top_k,
                                   .hidden = hidden});
      };
      combine(0, tokens, y.data());
      CHECK(y.first_damaged() == kUndamaged);
      Worst worst;
      for (i64 t = 0; t < tokens; t++)
        for (i64 i = 0; i < hidden; i++) {
          f64 sum = static_cast<f64>(residual[static_cast<size_t>(t * hidden + i)]),
              magnitude = std::abs(sum);
          for (i64 k = 0; k < top_k; k++) {
            f64 term = static_cast<f64>(weights[static_cast<size_t>(t * top_k + k)]) *
                       static_cast<f64>(rows[static_cast<size_t>((t * top_k + k) * hidden + i)]);
            sum += term;
            magnitude += std::abs(term);
          }
          f64 last = with_shared ? static_cast<f64>(shared[static_cast<size_t>(t * hidden + i)]) : 0.0;
          worst.see(fmt::format("({}, {})", t, i), static_cast<f64>(y.data()[t * hidden + i]), sum + last,
                    static_cast<f64>(top_k + 3) * kHalfUlp * (magnitude + std::abs(last)));
        }
      CHECK_MESSAGE(worst.share <= 1, worst.text);
      CHECK(same.differing(stream, y.data(), y.count()) == 0);
      i64 different = 0;
      for (i64 t = 0; t < tokens; t++) {
        std::vector<f32> alone(residual.begin() + t * hidden, residual.begin() + (t + 1) * hidden);
        combine(t, 1, alone.data());
        different += std::memcmp(alone.data(), y.data() + t * hidden, sizeof(f32) * alone.size()) != 0;
      }
      CHECK(different == 0);
    });
  }
}

TEST_CASE("long additions are split without a gap") {
  Rng rng(4);
  for (i64 count : {i64{1}, i64{16383}, i64{100001}}) {
    std::vector<f32> x = normals(count, 100, rng), y0 = normals(count, 1, rng);
    for_streams([&](Stream& stream, const std::string& where) {
      INFO(where << ", count " << count);
      CanaryBuffer<f32> y(count);
      for (i64 i = 0; i < count; i++) {
        y.expect_write(i);
        y.data()[i] = y0[static_cast<size_t>(i)];
      }
      cpu_ops().add(stream, y.data(), x.data(), count);
      CHECK(y.first_damaged() == kUndamaged);
      i64 wrong = 0;
      for (i64 i = 0; i < count; i++) {
        size_t at = static_cast<size_t>(i);
        wrong += y.data()[i] != y0[at] + x[at];
      }
      CHECK(wrong == 0);
    });
  }
}

TEST_CASE("cache rows are stored in any type, by any number of workers") {
  Rng rng(6);
  constexpr i64 kRows = 301, kCols = 96;  // several ranges of work, the last one short
  std::vector<f32> x = normals(kRows * kCols, 1, rng);
  for (CacheType type : {CacheType::F32, CacheType::F16, CacheType::Q8_0}) {
    std::vector<u8> want;
    for_streams([&](Stream& stream, const std::string& where) {
      INFO(where << ", type " << static_cast<int>(type));
      CanaryBuffer<u8> out(cache_bytes(type, kRows * kCols));
      for (i64 i = 0; i < out.count(); i++) out.expect_write(i);
      cpu_ops().store_latents(stream, {x.data(), type, out.data(), kRows, kCols});
      CHECK(out.first_damaged() == CanaryBuffer<u8>::kNone);
      if (want.empty()) want.assign(out.data(), out.data() + out.count());
      CHECK(std::memcmp(out.data(), want.data(), want.size()) == 0);
    });
    i64 wrong = 0;
    for (i64 i = 0; i < kRows * kCols; i++) {
      const f32 value = x[static_cast<size_t>(i)];
      if (type == CacheType::F32) wrong += reinterpret_cast<const f32*>(want.data())[i] != value;
      if (type == CacheType::F16) wrong += reinterpret_cast<const u16*>(want.data())[i] != f32_to_f16(value);
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("long rows of every block format are decoded without a gap, to the same bits at every level") {
  Rng rng(5);
  for (const BlockTypeInfo& of : all_block_types()) {
    const BlockType type = of.type;
    TestMatrix w(type, 3, 20480, 0.1f, rng);
    for_streams([&](Stream& stream, const std::string& where) {
      INFO(info(type).name << ", " << where);
      CanaryBuffer<f32> y(w.rows * w.cols);
      for (i64 i = 0; i < y.count(); i++) y.expect_write(i);
      cpu_ops().dequantize(stream, type, w.blocks.data(), y.data(), y.count());
      CHECK(y.first_damaged() == kUndamaged);
      CHECK(std::memcmp(y.data(), w.values.data(), sizeof(f32) * w.values.size()) == 0);
    });
  }
}
