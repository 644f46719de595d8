// Absorbed and decompressed attention against one f64 definition: softmax(scale * (q . k)) v with keys and
// values rebuilt from the latents.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "kernels/cpu/leaf.h"
#include "tests/kernels/cpu/op_inputs.h"
#include "tests/support/canary.h"

using namespace stoker;
using namespace stoker::test;

namespace {

constexpr i64 kUndamaged = CanaryBuffer<f32>::kNone;

// The latent cache of one sequence in any type.
struct TestCache {
  i64 length, row;
  CacheType type;
  std::vector<std::byte> bytes;
  std::vector<f32> floats;  // the values that it holds

  TestCache(CacheType t, i64 l, i64 r, f32 deviation, Rng& rng)
      : length(l), row(r), type(t), bytes(static_cast<size_t>(cache_bytes(t, l * r))), floats(normals(l * r, deviation, rng)) {
    WorkerPool pool({.workers = 1, .pin = false});
    Stream stream(pool, IsaLevel::ref);
    cpu_ops().store_latents(stream, {floats.data(), type, bytes.data(), length, row});
    const LeafTable& leaves = leaf_table(IsaLevel::ref);
    if (type == CacheType::F16) leaves.from_f16(reinterpret_cast<const u16*>(bytes.data()), floats.data(), l * r);
    if (type == CacheType::Q8_0)
      leaves.dequantize[static_cast<i64>(BlockType::Q8_0)](bytes.data(), floats.data(), l * r);
  }
  const void* data() const { return bytes.data(); }
  f64 at(i64 position, i64 i) const {
    return static_cast<f64>(floats[static_cast<size_t>(position * row + i)]);
  }
};

// softmax(scores) weighted sum of value(position, i), and how far floats may be off: a score that is off by s
// changes its weight by the factor e^s, so the sum by at most twice that of the weighted magnitudes.
struct Attended {
  std::vector<f64> value, tolerance;
};
template <class ValueAt>
Attended attend(const std::vector<f64>& scores, f64 score_error, i64 size, f64 value_error, ValueAt value) {
  f64 best = -INFINITY, sum = 0;
  for (f64 s : scores) best = std::max(best, s);
  for (f64 s : scores) sum += std::exp(s - best);
  // Exponentials, their sum and the weighted sum: a rounding per position each, and those of the merges.
  f64 relative = 2 * score_error + (2 * static_cast<f64>(scores.size()) + 64) * kHalfUlp;
  Attended out{std::vector<f64>(static_cast<size_t>(size)), std::vector<f64>(static_cast<size_t>(size))};
  for (size_t p = 0; p < scores.size(); p++) {
    f64 weight = std::exp(scores[p] - best) / sum;
    for (i64 i = 0; i < size; i++) {
      f64 v = value(static_cast<i64>(p), i);
      out.value[static_cast<size_t>(i)] += weight * v;
      out.tolerance[static_cast<size_t>(i)] += weight * (std::abs(v) * relative + value_error);
    }
  }
  return out;
}

struct Score {
  f64 value = 0, magnitude = 0;
  void add(f64 a, f64 b) {
    value += a * b;
    magnitude += std::abs(a * b);
  }
};

struct LatentCase {
  CacheType type;
  i64 heads, latent, rope;
  std::vector<i64> lengths;  // one token each
  f32 q_deviation;
};

class LatentRun {
 public:
  LatentRun(const LatentCase& c, u64 seed) : c_(c) {
    Rng rng(seed);
    for (i64 length : c.lengths) caches_.emplace_back(c.type, length, c.latent + c.rope, 1.0f, rng);
    i64 rows = static_cast<i64>(c.lengths.size()) * c.heads;
    q_latent_ = normals(rows * c.latent, c.q_deviation, rng);
    q_rope_ = normals(rows * q_row(), c.q_deviation, rng);
  }

  i64 tokens() const { return static_cast<i64>(c_.lengths.size()); }
  i64 out_count() const { return tokens() * c_.heads * c_.latent; }

  // Tokens [first, first + count) into out [count, heads, latent].
  void run(Stream& stream, i64 first, i64 count, f32* out) const {
    std::vector<LatentAttentionArgs::Query> queries;
    i64 longest = 0;
    for (i64 t = first; t < first + count; t++) {
      const TestCache& cache = caches_[static_cast<size_t>(t)];
      queries.push_back({cache.data(), cache.length});
      longest = std::max(longest, cache.length);
    }
    i64 bytes = latent_attention_scratch_bytes(stream.workers().size(), count, c_.heads, c_.latent, c_.rope, longest);
    CanaryBuffer<u8> scratch(bytes);
    for (i64 i = 0; i < bytes; i++) scratch.expect_write(i);
    cpu_ops().latent_attention(stream, {.cache_type = c_.type,
                                        .queries = queries,
                                        .q_latent = q_latent_.data() + first * c_.heads * c_.latent,
                                        .q_rope = q_rope_.data() + first * c_.heads * q_row(),
                                        .q_rope_token_stride = c_.heads * q_row(),
                                        .q_rope_head_stride = q_row(),
                                        .out = out,
                                        .heads = c_.heads,
                                        .latent = c_.latent,
                                        .rope = c_.rope,
                                        .scale = kScale,
                                        .scratch = reinterpret_cast<std::byte*>(scratch.data()),
                                        .scratch_bytes = bytes});
    CHECK(scratch.first_damaged() == kUndamaged);
  }

  void check(const f32* out) const {
    Worst worst;
    for (i64 t = 0; t < tokens(); t++)
      for (i64 h = 0; h < c_.heads; h++) {
        Attended expected = reference(t, h);
        for (i64 i = 0; i < c_.latent; i++)
          worst.see(fmt::format("token {} head {} element {}", t, h, i),
                    static_cast<f64>(out[(t * c_.heads + h) * c_.latent + i]),
                    expected.value[static_cast<size_t>(i)], expected.tolerance[static_cast<size_t>(i)]);
      }
    CHECK_MESSAGE(worst.share <= 1, worst.text);
  }

 private:
  static constexpr f32 kScale = 0.135f;
  i64 q_row() const { return c_.rope + 3; }  // rows of another tensor: longer than what is read

  Attended reference(i64 token, i64 head) const {
    const TestCache& cache = caches_[static_cast<size_t>(token)];
    const f32* q = q_latent_.data() + (token * c_.heads + head) * c_.latent;
    const f32* r = q_rope_.data() + (token * c_.heads + head) * q_row();
    std::vector<f64> scores;
    f64 largest = 0;
    for (i64 p = 0; p < cache.length; p++) {
      Score s;
      for (i64 i = 0; i < c_.latent; i++) s.add(static_cast<f64>(q[i]), cache.at(p, i));
      for (i64 i = 0; i < c_.rope; i++) s.add(static_cast<f64>(r[i]), cache.at(p, c_.latent + i));
      scores.push_back(s.value * static_cast<f64>(kScale));
      largest = std::max(largest, s.magnitude * static_cast<f64>(kScale));
    }
    f64 error = static_cast<f64>(c_.latent + c_.rope + 4) * kHalfUlp * largest;
    return attend(scores, error, c_.latent, 0, [&](i64 p, i64 i) { return cache.at(p, i); });
  }

  const LatentCase& c_;
  std::vector<TestCache> caches_;
  std::vector<f32> q_latent_, q_rope_;
};

}  // namespace

TEST_CASE("absorbed attention agrees with its definition for every length, alone and beside others") {
  const LatentCase cases[] = {
      {CacheType::F16, 1, 32, 8, {1}, 1},
      {CacheType::F16, 5, 64, 16, {1, 2, 15, 16, 17, 255, 256, 257, 700}, 1},
      {CacheType::F32, 9, 40, 6, {3, 300}, 1},
      {CacheType::F16, 16, 512, 64, {33, 513}, 0.3f},
      {CacheType::F16, 130, 32, 8, {97, 1}, 1},  // heads fill two panels and begin a third
      {CacheType::Q8_0, 17, 64, 32, {1, 95, 400}, 1},
      // Parts larger than the smallest; more parts than are computed together, so that tokens come in two passes.
      {CacheType::F16, 2, 24, 8, {18500, 385, 9000}, 1},
      {CacheType::F16, 3, 32, 8, {200, 40}, 50},  // scores of a thousand: one position takes all
      {CacheType::F32, 3, 32, 8, {64}, 0},        // all scores equal
  };
  u64 seed = 40;
  for (const LatentCase& c : cases) {
    LatentRun run(c, ++seed);
    SameBits same;
    for_streams([&](Stream& stream, const std::string& where) {
      INFO("case " << seed - 41 << ", " << where);
      CanaryBuffer<f32> out(run.out_count());
      for (i64 i = 0; i < run.out_count(); i++) out.expect_write(i);
      run.run(stream, 0, run.tokens(), out.data());
      CHECK(out.first_damaged() == kUndamaged);
      if (stream.workers().size() == 2) run.check(out.data());
      CHECK(same.differing(stream, out.data(), run.out_count()) == 0);
      i64 different = 0, one = c.heads * c.latent;
      std::vector<f32> alone(static_cast<size_t>(one));
      for (i64 t = 0; t < run.tokens(); t++) {
        run.run(stream, t, 1, alone.data());
        different += std::memcmp(alone.data(), out.data() + t * one, sizeof(f32) * alone.size()) != 0;
      }
      CHECK(different == 0);
    });
  }
}

namespace {

struct PromptCase {
  CacheType type;
  i64 heads, nope, rope, latent, v;
  i64 first, tokens;
  BlockType k_type, v_type;
  f32 q_deviation;
};

class PromptRun {
 public:
  PromptRun(const PromptCase& c, u64 seed)
      : c_(c),
        rng_(seed),
        cache_(c.type, c.first + c.tokens, c.latent + c.rope, 1.0f, rng_),
        k_b_(c.k_type, c.heads * c.latent, c.nope, kDeviation, rng_),
        v_b_(c.v_type, c.heads * c.v, c.latent, kDeviation, rng_),
        q_(normals(c.tokens * c.heads * (c.nope + c.rope), c.q_deviation, rng_)) {}

  i64 out_count() const { return c_.tokens * c_.heads * c_.v; }

  // The chunk's tokens [skip, tokens): a shorter chunk that starts later, with the same answers.
  void run(Stream& stream, i64 skip, f32* out) const {
    i64 bytes = prompt_attention_scratch_bytes(stream.workers().size(), cache_.length, c_.nope, c_.rope,
                                               c_.latent, c_.v);
    CanaryBuffer<u8> scratch(bytes);
    for (i64 i = 0; i < bytes; i++) scratch.expect_write(i);
    Matrix k = k_b_.view(), v = v_b_.view();
    k.rows = c_.latent;
    v.rows = c_.v;
    cpu_ops().prompt_attention(stream, {.q = q_.data() + skip * c_.heads * (c_.nope + c_.rope),
                                        .cache = cache_.data(),
                                        .cache_type = c_.type,
                                        .first = c_.first + skip,
                                        .tokens = c_.tokens - skip,
                                        .k_b = k,
                                        .k_b_head_stride_bytes = c_.latent * row_bytes(k.type, c_.nope),
                                        .v_b = v,
                                        .v_b_head_stride_bytes = c_.v * row_bytes(v.type, c_.latent),
                                        .out = out,
                                        .heads = c_.heads,
                                        .nope = c_.nope,
                                        .rope = c_.rope,
                                        .latent = c_.latent,
                                        .v = c_.v,
                                        .scale = kScale,
                                        .scratch = reinterpret_cast<std::byte*>(scratch.data()),
                                        .scratch_bytes = bytes});
    CHECK(scratch.first_damaged() == kUndamaged);
  }

  void check(const f32* out) const {
    Worst worst;
    for (i64 h = 0; h < c_.heads; h++) check_head(h, out, worst);
    CHECK_MESSAGE(worst.share <= 1, worst.text);
  }

 private:
  static constexpr f32 kDeviation = 0.1f, kScale = 0.135f;

  void check_head(i64 head, const f32* out, Worst& worst) const {
    // Keys and values with the sums of magnitudes that bound their errors.
    std::vector<Score> keys, values;
    for (i64 p = 0; p < cache_.length; p++) {
      for (i64 d = 0; d < c_.nope; d++) {
        Score s;
        for (i64 r = 0; r < c_.latent; r++) s.add(k_b_.at(head * c_.latent + r, d), cache_.at(p, r));
        keys.push_back(s);
      }
      for (i64 i = 0; i < c_.v; i++) {
        Score s;
        for (i64 r = 0; r < c_.latent; r++) s.add(v_b_.at(head * c_.v + i, r), cache_.at(p, r));
        values.push_back(s);
      }
    }
    f64 value_error = 0;
    const f64 latent_roundings = static_cast<f64>(c_.latent + 2) * kHalfUlp;
    for (const Score& v : values) value_error = std::max(value_error, latent_roundings * v.magnitude);
    for (i64 t = 0; t < c_.tokens; t++) {
      const f32* q = q_.data() + (t * c_.heads + head) * (c_.nope + c_.rope);
      std::vector<f64> scores;
      f64 error = 0;
      for (i64 p = 0; p <= c_.first + t; p++) {
        Score s;
        f64 from_keys = 0;
        for (i64 d = 0; d < c_.nope; d++) {
          const Score& k = keys[static_cast<size_t>(p * c_.nope + d)];
          s.add(static_cast<f64>(q[d]), k.value);
          from_keys += std::abs(static_cast<f64>(q[d])) * k.magnitude * latent_roundings;
        }
        for (i64 d = 0; d < c_.rope; d++)
          s.add(static_cast<f64>(q[c_.nope + d]), cache_.at(p, c_.latent + d));
        scores.push_back(s.value * static_cast<f64>(kScale));
        f64 roundings = static_cast<f64>(c_.nope + c_.rope + 4) * kHalfUlp;
        error = std::max(error, (roundings * s.magnitude + from_keys) * static_cast<f64>(kScale));
      }
      Attended expected = attend(scores, error, c_.v, value_error, [&](i64 p, i64 i) {
        return values[static_cast<size_t>(p * c_.v + i)].value;
      });
      for (i64 i = 0; i < c_.v; i++)
        worst.see(fmt::format("token {} head {} element {}", t, head, i),
                  static_cast<f64>(out[(t * c_.heads + head) * c_.v + i]),
                  expected.value[static_cast<size_t>(i)], expected.tolerance[static_cast<size_t>(i)]);
    }
  }

  const PromptCase& c_;
  Rng rng_;
  TestCache cache_;
  TestMatrix k_b_, v_b_;
  std::vector<f32> q_;
};

}  // namespace

TEST_CASE(
    "decompressed attention agrees with its definition, causal within the chunk and over what came before, "
    "wherever the "
    "chunk begins") {
  using enum BlockType;
  const PromptCase cases[] = {
      {CacheType::F16, 1, 32, 8, 32, 32, 0, 1, F32, F32, 1},
      {CacheType::F16, 3, 32, 16, 64, 32, 0, 37, Q8_0, Q8_0, 1},
      {CacheType::F32, 2, 64, 8, 256, 32, 19, 45, Q4_0, Q4_K, 1},
      {CacheType::F16, 5, 33, 7, 41, 29, 3, 70, F16, BF16, 1},  // nothing is a multiple of anything
      {CacheType::F16, 2, 32, 8, 32, 32, 530, 40, Q5_1, IQ4_NL, 1},
      {CacheType::F16, 1, 128, 64, 512, 128, 700, 33, Q8_0, Q8_0, 1},
      {CacheType::Q8_0, 2, 32, 32, 64, 32, 150, 70, Q8_0, Q4_0, 1},
      {CacheType::F16, 2, 32, 8, 32, 32, 100, 20, F32, F32, 60},  // one position takes all
      {CacheType::F16, 2, 32, 8, 32, 32, 5, 20, F32, F32, 0},     // all scores equal
  };
  u64 seed = 60;
  for (const PromptCase& c : cases) {
    PromptRun run(c, ++seed);
    SameBits same;
    for_streams([&](Stream& stream, const std::string& where) {
      INFO("case " << seed - 61 << ", " << where);
      CanaryBuffer<f32> out(run.out_count());
      for (i64 i = 0; i < run.out_count(); i++) out.expect_write(i);
      run.run(stream, 0, out.data());
      CHECK(out.first_damaged() == kUndamaged);
      if (stream.workers().size() == 2) run.check(out.data());
      CHECK(same.differing(stream, out.data(), run.out_count()) == 0);
      // The same positions as a chunk that begins later: the same bits.
      i64 skip = c.tokens / 2;
      std::vector<f32> late(static_cast<size_t>(run.out_count()));
      run.run(stream, skip, late.data() + skip * c.heads * c.v);
      size_t at = static_cast<size_t>(skip * c.heads * c.v);
      CHECK(std::memcmp(&late[at], out.data() + at, sizeof(f32) * (late.size() - at)) == 0);
    });
  }
}
