// Feeds known tokens to an engine (teacher forcing): what eval and bench share.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

class Engine;
enum class RowRole : u8;

// Which positions' logits are computed.
enum class WantLogits { every, last };

// Appends `tokens` to sequence 0, a piece of the engine's at a time, and hands over each chunk's
// logits: on_logits(index of the first token, [rows, vocab]). feed computes them as a prompt is computed,
// feed_generated one by one as if each had been sampled. Throws Error when a read fails, Interrupted after
// Ctrl-C.
class Teacher {
 public:
  using OnLogits = std::function<void(i64 first, std::span<const f32> logits)>;

  explicit Teacher(Engine& engine) : engine_(engine) {}
  void feed(std::span<const i32> tokens, WantLogits want, const OnLogits& on_logits);
  void feed_generated(std::span<const i32> tokens, const OnLogits& on_logits);
  // Forgets all but the first `length` tokens of the sequence.
  void rewind(i64 length);

 private:
  void feed_rows(std::span<const i32> tokens, i64 chunk, RowRole role, WantLogits want, const OnLogits& on_logits);

  Engine& engine_;
  std::vector<f32> logits_;
};

// FNV-1a over the bits, continued from `hash`.
constexpr u64 kHashStart = 0xcbf29ce484222325u;
u64 hash_logits(std::span<const f32> logits, u64 hash);

// -log softmax(logits)[token], in double.
f64 negative_log_likelihood(std::span<const f32> logits, i32 token);

}  // namespace stoker
