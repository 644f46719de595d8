// Everything a backend can compute. Each op is op(Stream&, args) with plain data; a backend fills the struct.
//
// On the CPU a Stream is the worker pool plus the instruction level to use, and an op has finished when it
// returns. All ops are batch-invariant on the CPU: a row's result depends on that row alone, never on how many
// other rows, which threads or in which order (this is what makes logits bit-equal over budgets, threads and
// neighbours). Sizes are in elements unless named bytes. Pointers are never owned. Nothing allocates.
//
// On a device the Stream is one of its streams, and an op has been posted when it returns: it has run when an event
// recorded behind it is done, which also tells of failures. Pointers are then addresses of the device
// (DevicePtr::as), those within ExpertWork too; spans are in the CPU's memory and stay as they are until the op has run.
// A device's table has the ops that it can do; the others are null. Rows of 8-bit activations are then
// round_up(activation_row_bytes(...), Ops::row_alignment) apart, at most kDeviceRowAlignment more than on the CPU.
// Matrices of a table with `pack` are in its order (kernels/format/packed.h), which pack makes of the file's; those of
// heads each for itself.
//
// Arithmetic. Weights stay in their block format. Activations come in one of three forms; weight_input() says
// which one a weight format wants. `exact` keeps them in float32; otherwise they are quantised once per token.
#pragma once

#include <span>

#include "kernels/base/types.h"
#include "kernels/format/activation.h"
#include "kernels/format/block_type.h"
#include "kernels/format/blocks.h"

namespace stoker {

class Stream;
class Device;

// Limits of the fixed-size buffers in kernels; a model beyond them is refused when it is loaded.
constexpr i64 kMaxLatentRow = 1024;  // latent + rope
constexpr i64 kMaxExperts = 1024;    // per layer

// A matrix in a block format: `rows` rows of `cols` weights, each row row_bytes(type, cols) long, back to back.
struct Matrix {
  const void* data = nullptr;
  BlockType type = BlockType::F32;
  i64 rows = 0;
  i64 cols = 0;
};

// Rows of activations in one of the forms; `x` holds row r at byte r * stride_bytes.
struct Activations {
  const void* x = nullptr;
  ActivationForm form = ActivationForm::F32;
  i64 stride_bytes = 0;
};

struct QuantizeArgs {
  const f32* x;     // [rows, cols], row r at x + r * x_stride
  i64 rows, cols, x_stride;
  ActivationForm form;  // Q8_32 (cols a multiple of 32) or Q8_256 (of 256)
  void* out;            // row r at byte r * activation_row_bytes(form, cols)
};

// y[t][r] = dot(weights[r], x[t])
struct MatmulArgs {
  Matrix weights;
  Activations x;  // [tokens, cols], of the form weight_input(weights.type, cols, exact)
  i64 tokens;
  f32* y;  // [tokens, rows], row t at y + t * y_stride
  i64 y_stride;
};

// The same for every head h at once: y[t][h][r] = dot(w[h][r], x[t][h])
struct HeadMatmulArgs {
  Matrix weights;         // of head 0; rows and cols are per head
  i64 head_stride_bytes;  // from head h to h + 1
  i64 heads;
  Activations x;            // row (t * heads + h); [tokens, heads, cols]
  i64 tokens;
  f32* y;  // element (t, h, r) at y + t * y_token_stride + h * y_head_stride + r
  i64 y_token_stride, y_head_stride;
};

struct RmsNormArgs {
  const f32* x;  // [rows, cols], row r at x + r * x_stride
  const f32* weight;  // [cols]
  f32* y;             // [rows, cols], row r at y + r * y_stride; may be x
  i64 rows, cols, x_stride, y_stride;
  f32 epsilon;
  // Or nullptr. Else x's rows are added to these, at the same stride, and the sums are normed instead.
  f32* residual = nullptr;
  // y in 8-bit forms too, as quantize() makes them; or nullptr.
  void* y_q8_32 = nullptr;
  void* y_q8_256 = nullptr;
};

// How the latent cache keeps its numbers. F32 is for exact arithmetic: in a deep model the rounding of f16 is the
// largest error that is left there. Q8_0 rows are blocks of 32 bytes with an f16 scale each, as in files: the row's
// length is a multiple of 32.
enum class CacheType { F16, F32, Q8_0 };
constexpr i64 cache_bytes(CacheType type, i64 count) {
  return type == CacheType::Q8_0 ? count / 32 * i64{sizeof(BlockQ8_0)} : count * (type == CacheType::F16 ? 2 : 4);
}

// What attention does with rows between its products: norms the latent, rotates the key, and the last elements of each head's
// query likewise, and keeps latent and key in the cache. Rotated are interleaved pairs (2i, 2i+1), by positions[row] *
// frequencies[i].
struct AttentionRowsArgs {
  struct Run {
    void* cache;  // of its first row; the others follow
    i64 first_row, rows;
  };
  f32* kv;                 // [rows, latent + rope], in place
  const f32* kv_weight;    // [latent]
  f32 epsilon;
  f32* q;                  // [rows, heads, nope + rope], in place
  i64 rows, heads, nope, rope, latent;
  const i32* positions;    // [rows]
  const f32* frequencies;  // [rope / 2], radians per position, YaRN applied (reference: rope.h in runtime)
  CacheType cache_type;
  std::span<const Run> runs;  // all rows, in order
};

// One routed or shared expert applied to some tokens: down(silu(gate x) * (up x)).
struct ExpertWork {
  Matrix gate, up, down;   // gate, up: [ffn, hidden]; down: [hidden, ffn]
  const i32* rows;         // [tokens]: which activation row each token is
  const i32* out_rows;     // [tokens]: which output row each result goes to
  i64 tokens;
};

struct ExpertFfnArgs {
  std::span<const ExpertWork> work;  // any mix of formats and token counts; one parallel region
  const f32* x;                      // [tokens, hidden] float activations
  // The same rows quantised, where some format in `work` needs them (else nullptr), back to back.
  const void* x_q8_32;
  const void* x_q8_256;
  i64 hidden, ffn;
  f32* out;          // [out rows, hidden]
  std::byte* scratch;  // expert_scratch_bytes(...) bytes
  i64 scratch_bytes;
  bool exact;
};

struct StoreLatentsArgs {
  const f32* x;    // [rows, cols], back to back
  CacheType type;
  void* out;       // the same rows, back to back: cache_bytes(type, cols) each
  i64 rows, cols;
};

// Absorbed multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1.2): one query row attends to the
// latent cache of its sequence. score = scale * (q_latent . latent + q_rope . rope); out = sum softmax * latent.
struct LatentAttentionArgs {
  struct Query {
    const void* cache;  // [length, latent + rope] of this query's sequence and layer
    i64 length;         // positions to attend to, the query's own included
  };
  CacheType cache_type = CacheType::F16;
  std::span<const Query> queries;  // [tokens]
  const f32* q_latent;             // [tokens, heads, latent]
  const f32* q_rope;               // [tokens, heads, rope], head h of row t at q_rope + t * q_rope_stride_t + h * q_rope_stride_h
  i64 q_rope_token_stride, q_rope_head_stride;
  f32* out;                        // [tokens, heads, latent]
  i64 heads, latent, rope;
  f32 scale;
  std::byte* scratch;  // latent_attention_scratch_bytes(...)
  i64 scratch_bytes;
  // Rows (t * heads + h) of `out` in an 8-bit form too, as quantize() makes them; or nullptr.
  void* out_quantized = nullptr;
  ActivationForm out_form = ActivationForm::F32;
};

// Decompressed causal attention of a run of consecutive positions of ONE sequence (a prompt chunk). Keys and values
// are rebuilt from the latent cache head by head: k[h][d] = sum_r k_b[h][r][d] * latent[r], v[h] = v_b[h] latent.
struct PromptAttentionArgs {
  const f32* q;  // [tokens, heads, nope + rope], back to back, rope applied
  const void* cache;  // [first + tokens, latent + rope]: the chunk's own positions are already in it
  CacheType cache_type = CacheType::F16;
  i64 first;         // position of the chunk's first token
  i64 tokens;
  Matrix k_b;  // head 0: [latent, nope]
  i64 k_b_head_stride_bytes;
  Matrix v_b;  // head 0: [v, latent]
  i64 v_b_head_stride_bytes;
  f32* out;  // [tokens, heads, v]
  i64 heads, nope, rope, latent, v;
  f32 scale;
  i64 first_head = 0, some_heads = 0;  // a part of the heads, the others' outputs are left alone; 0: all (devices know no parts)
  std::byte* scratch;  // prompt_attention_scratch_bytes(...)
  i64 scratch_bytes;
};

// Which experts see a token (DeepSeek-V3, arXiv 2412.19437, section 2.1.2; shared/reference gguf-deepseek2 1.6).
struct RouteArgs {
  const f32* logits;  // [tokens, experts]
  i64 tokens, experts, top_k;
  const f32* bias;    // [experts] added for the selection only, or nullptr
  bool sigmoid;       // else softmax
  bool normalise;     // divide the chosen weights by their sum
  f32 scale;          // then multiply by this
  i64 groups, groups_used;  // groups <= 1: no group limit
  bool group_score_is_max;  // V2: best expert of a group; V3: sum of its two best
  i32* ids;      // [tokens, top_k], best first
  f32* weights;  // [tokens, top_k]
};

// y[t] = residual[t] + sum over ranks in order of weights[t][k] * rows[t * top_k + k] + shared[t]
struct CombineArgs {
  const f32* rows;     // [tokens * top_k, hidden]
  const f32* weights;  // [tokens, top_k]
  const f32* shared;   // [tokens, hidden] or nullptr
  f32* residual;       // [tokens, hidden], updated in place
  i64 tokens, top_k, hidden;
};

// A matrix from the file's order, [rows] rows of row_bytes(type, cols), into the packed one, packed_bytes(), or back. The
// two do not overlap; the file's may begin anywhere, the packed one at a multiple of 16 bytes.
struct ReorderArgs {
  BlockType type;  // a format of blocks: others are the same in both orders
  i64 rows, cols;
  const void* from;
  void* to;
};

// A few rows, copied by the device itself into memory of the host's that it sees in place (Device::mapped_address), then a word
// behind them: who finds `value` there finds the rows (MappedFlag).
struct HandOverArgs {
  struct Piece {
    const void* from;
    void* to;
    i64 bytes;
  };
  static constexpr i64 kMostPieces = 16;
  Piece pieces[kMostPieces] = {};
  i64 count = 0;
  u32* flag = nullptr;
  u32 value = 0;
};

// What attention on a device is to be able to do.
struct AttentionShape {
  i64 rows;       // most of a chunk
  i64 generated;  // most queries of latent attention
  i64 context;    // most positions of a sequence
  i64 heads, nope, rope, latent, v;
  CacheType cache;
};

struct Ops {
  const char* name;  // "cpu"
  i64 row_alignment = 1;          // of rows that quantize makes, in bytes
  bool multiplies_floats = true;  // whether matrices in blocks take F32 activations too; else those of weight_input() alone

  void (*quantize)(Stream&, const QuantizeArgs&);
  void (*matmul)(Stream&, const MatmulArgs&);
  void (*head_matmul)(Stream&, const HeadMatmulArgs&);
  void (*rms_norm)(Stream&, const RmsNormArgs&);
  void (*attention_rows)(Stream&, const AttentionRowsArgs&);
  void (*expert_ffn)(Stream&, const ExpertFfnArgs&);
  void (*latent_attention)(Stream&, const LatentAttentionArgs&);
  void (*prompt_attention)(Stream&, const PromptAttentionArgs&);
  void (*route)(Stream&, const RouteArgs&);
  void (*combine)(Stream&, const CombineArgs&);
  // y[i] += x[i]
  void (*add)(Stream&, f32* y, const f32* x, i64 count);
  // Of the CPU's table alone.
  void (*store_latents)(Stream&, const StoreLatentsArgs&);
  // weights of any format -> f32; count a multiple of the block size
  void (*dequantize)(Stream&, BlockType, const void* blocks, f32* y, i64 count);
  // Of devices' tables.
  void (*hand_over)(Stream&, const HandOverArgs&);
  // Of a device's table: what both forms of attention need of scratch. 0: they cannot do that.
  i64 (*attention_scratch_bytes)(const AttentionShape&) = nullptr;
  // Both or none. unpack undoes pack, to the last bit.
  void (*pack)(Stream&, const ReorderArgs&);
  void (*unpack)(Stream&, const ReorderArgs&);
};

// The CPU's table. The instruction level is a property of the Stream.
const Ops& cpu_ops();
// The table of what computes on this device.
const Ops& device_ops(const Device& device);

// Bytes of scratch each op may need, for planning.
i64 expert_scratch_bytes(i64 total_tokens, i64 ffn);  // total_tokens: sum of ExpertWork::tokens
i64 latent_attention_scratch_bytes(int workers, i64 tokens, i64 heads, i64 latent, i64 rope, i64 max_length);
i64 prompt_attention_scratch_bytes(int workers, i64 max_tokens, i64 nope, i64 rope, i64 latent, i64 v);

}  // namespace stoker
