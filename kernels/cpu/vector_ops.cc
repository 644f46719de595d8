// Norms, rotation, sums and conversions: short work, so a region is entered only when there is enough of it.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/leaf.h"
#include "kernels/device/stream.h"

namespace stoker::cpu {

// Below this many elements a region costs more than it saves.
static constexpr i64 kGrain = 16384;

static i64 rows_per_worker(i64 cols) { return std::max<i64>(1, kGrain / std::max<i64>(1, cols)); }

void rms_norm(Stream& stream, const RmsNormArgs& a) {
  const LeafTable& leaves = leaf_table(stream.level());
  stream.workers().for_ranges(a.rows, rows_per_worker(a.cols), [&](i64 begin, i64 end) {
    for (i64 r = begin; r < end; r++) {
      const f32* x = a.x + r * a.x_stride;
      if (a.residual != nullptr) {
        f32* sum = a.residual + r * a.x_stride;
        leaves.add(sum, x, a.cols);
        x = sum;
      }
      leaves.rms_norm(x, a.weight, a.y + r * a.y_stride, a.cols, a.epsilon);
    }
  });
  auto make = [&](ActivationForm form, void* out) {
    if (out != nullptr) quantize(stream, {a.y, a.rows, a.cols, a.y_stride, form, out});
  };
  make(ActivationForm::Q8_32, a.y_q8_32);
  make(ActivationForm::Q8_256, a.y_q8_256);
}

namespace {

// Head h of row r at x + r * row_stride + h * head_stride; `dim` elements are turned.
struct Turned {
  f32* x;
  i64 heads, row_stride, head_stride, dim;
};

void rotate_row(const Turned& t, const AttentionRowsArgs& a, i64 row) {
  for (i64 i = 0; i < t.dim / 2; i++) {
    f64 angle = static_cast<f64>(a.positions[row]) * static_cast<f64>(a.frequencies[i]);
    f32 c = static_cast<f32>(std::cos(angle)), s = static_cast<f32>(std::sin(angle));
    for (i64 h = 0; h < t.heads; h++) {
      f32* pair = t.x + row * t.row_stride + h * t.head_stride + 2 * i;
      f32 x = pair[0], y = pair[1];
      pair[0] = x * c - y * s;
      pair[1] = x * s + y * c;
    }
  }
}

}  // namespace

// Only the latent part is normed: the rotated key shares its row but is used as it is.
void attention_rows(Stream& stream, const AttentionRowsArgs& a) {
  const LeafTable& leaves = leaf_table(stream.level());
  const i64 row = a.latent + a.rope, key = a.nope + a.rope;
  const Turned keys{a.kv + a.latent, 1, row, 0, a.rope}, queries{a.q + a.nope, a.heads, a.heads * key, key, a.rope};
  stream.workers().for_ranges(a.rows, rows_per_worker(row + a.heads * a.rope), [&](i64 begin, i64 end) {
    for (i64 r = begin; r < end; r++) {
      leaves.rms_norm(a.kv + r * row, a.kv_weight, a.kv + r * row, a.latent, a.epsilon);
      rotate_row(keys, a, r);
      rotate_row(queries, a, r);
    }
  });
  for (const AttentionRowsArgs::Run& run : a.runs)
    store_latents(stream, {a.kv + run.first_row * row, a.cache_type, run.cache, run.rows, row});
}

void combine(Stream& stream, const CombineArgs& a) {
  const LeafTable& leaves = leaf_table(stream.level());
  // One token is split along the hidden size, many along the tokens: the same sums element by element.
  i64 piece = a.tokens == 1 ? 1024 : a.hidden;
  i64 pieces = div_up(a.hidden, piece);
  stream.workers().for_ranges(a.tokens * pieces, 1, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; i++) {
      i64 t = i / pieces, first = i % pieces * piece;
      i64 count = std::min(piece, a.hidden - first);
      f32* y = a.residual + t * a.hidden + first;
      for (i64 k = 0; k < a.top_k; k++) {
        i64 row = t * a.top_k + k;
        leaves.add_scaled(y, a.rows + row * a.hidden + first, a.weights[row], count);
      }
      if (a.shared != nullptr) leaves.add(y, a.shared + t * a.hidden + first, count);
    }
  });
}

void add(Stream& stream, f32* y, const f32* x, i64 count) {
  const LeafTable& leaves = leaf_table(stream.level());
  stream.workers().for_ranges(count, kGrain, [&](i64 begin, i64 end) { leaves.add(y + begin, x + begin, end - begin); });
}

void store_latents(Stream& stream, const StoreLatentsArgs& a) {
  const LeafTable& leaves = leaf_table(stream.level());
  stream.workers().for_ranges(a.rows, rows_per_worker(a.cols), [&](i64 begin, i64 end) {
    const f32* x = a.x + begin * a.cols;
    std::byte* out = static_cast<std::byte*>(a.out) + begin * cache_bytes(a.type, a.cols);
    const i64 count = (end - begin) * a.cols;
    switch (a.type) {
      case CacheType::F32: std::copy(x, x + count, reinterpret_cast<f32*>(out)); break;
      case CacheType::F16: leaves.to_f16(x, reinterpret_cast<u16*>(out), count); break;
      case CacheType::Q8_0: leaves.quantize_q8_0(x, reinterpret_cast<BlockQ8_0*>(out), count); break;
    }
  });
}

void dequantize(Stream& stream, BlockType type, const void* blocks, f32* y, i64 count) {
  auto leaf = leaf_table(stream.level()).dequantize[static_cast<i64>(type)];
  const BlockTypeInfo& t = info(type);
  stream.workers().for_ranges(count, kGrain, [&](i64 begin, i64 end) {
    leaf(static_cast<const std::byte*>(blocks) + begin / t.block_weights * t.block_bytes, y + begin, end - begin);
  });
}

}  // namespace stoker::cpu
