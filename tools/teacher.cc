#include "tools/teacher.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "runtime/engine.h"
#include "tools/interrupt.h"

namespace stoker {

void Teacher::feed(std::span<const i32> tokens, WantLogits want, const OnLogits& on_logits) {
  feed_rows(tokens, engine_.options().chunk, RowRole::prompt, want, on_logits);
}

void Teacher::feed_generated(std::span<const i32> tokens, const OnLogits& on_logits) {
  feed_rows(tokens, 1, RowRole::generated, WantLogits::last, on_logits);
}

void Teacher::feed_rows(std::span<const i32> tokens, i64 chunk, RowRole role, WantLogits want,
                        const OnLogits& on_logits) {
  KvCache& cache = engine_.sequence(SequenceId(0));
  i64 vocab = engine_.hparams().vocab;
  i64 total = static_cast<i64>(tokens.size());
  std::vector<BatchRow> rows;
  for (i64 first = 0; first < total; first += chunk) {
    if (interrupt_flag()) throw Interrupted();
    i64 count = std::min(chunk, total - first);
    rows.clear();
    for (i64 i = 0; i < count; ++i) {
      BatchRow row;
      row.sequence = SequenceId(0);
      row.position = static_cast<i32>(cache.length() + i);
      row.token = tokens[static_cast<size_t>(first + i)];
      row.logits = want == WantLogits::every || i + 1 == count;
      row.role = role;
      rows.push_back(row);
    }
    i64 wanted = want == WantLogits::every ? count : 1;
    logits_.resize(static_cast<size_t>(wanted * vocab));
    Status status = engine_.forward(rows, logits_, &interrupt_flag());
    if (interrupt_flag()) throw Interrupted();
    if (!status.ok()) throw Error(status.message());
    on_logits(first + count - wanted, logits_);
  }
}

void Teacher::rewind(i64 length) { engine_.sequence(SequenceId(0)).truncate(length); }

u64 hash_logits(std::span<const f32> logits, u64 hash) {
  for (f32 value : logits) hash = (hash ^ std::bit_cast<u32>(value)) * 0x100000001b3u;
  return hash;
}

f64 negative_log_likelihood(std::span<const f32> logits, i32 token) {
  f64 largest = *std::max_element(logits.begin(), logits.end());
  f64 sum = 0;
  for (f32 value : logits) sum += std::exp(static_cast<f64>(value) - largest);
  return std::log(sum) - (static_cast<f64>(logits[static_cast<size_t>(token)]) - largest);
}

}  // namespace stoker
