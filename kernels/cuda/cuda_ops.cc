#include "kernels/cuda/cuda_ops.h"

#include "kernels/base/check.h"
#include "kernels/cuda/op_parts.h"
#include "kernels/cuda/products.h"

namespace stoker {

namespace cuda {

namespace {

void quantize(Stream& stream, const QuantizeArgs& a) {
  const Target t = target_of(stream);
  start_quantize(a, card_row_bytes(a.form, a.cols), t.card, t.stream);
}

void matmul(Stream& stream, const MatmulArgs& a) {
  const Matrix& w = a.weights;
  require_eight_bits(w.type, a.x.form);
  multiply(target_of(stream), {.type = w.type,
                               .matrices = {.first = static_cast<const std::byte*>(w.data),
                                            .matrix_stride_bytes = 0,
                                            .matrices = 1,
                                            .tokens = a.tokens,
                                            .y_matrix_stride = 0},
                               .rows = w.rows,
                               .cols = w.cols,
                               .x = a.x.x,
                               .x_stride_bytes = a.x.stride_bytes,
                               .y = a.y,
                               .y_stride = a.y_stride});
}

void head_matmul(Stream& stream, const HeadMatmulArgs& a) {
  const Matrix& w = a.weights;
  require_eight_bits(w.type, a.x.form);
  multiply(target_of(stream), {.type = w.type,
                               .matrices = {.first = static_cast<const std::byte*>(w.data),
                                            .matrix_stride_bytes = a.head_stride_bytes,
                                            .matrices = a.heads,
                                            .tokens = a.tokens,
                                            .y_matrix_stride = a.y_head_stride},
                               .rows = w.rows,
                               .cols = w.cols,
                               .x = a.x.x,
                               .x_stride_bytes = a.x.stride_bytes,
                               .y = a.y,
                               .y_stride = a.y_token_stride});
}

// An op that is one launch.
template <class Args, void (*kStart)(const Args&, const Card&, CUstream_st*)>
void post(Stream& stream, const Args& args) {
  const Target t = target_of(stream);
  kStart(args, t.card, t.stream);
}

void route(Stream& stream, const RouteArgs& a) {
  CHECK(a.experts <= kMaxExperts && a.top_k <= a.experts);
  post<RouteArgs, start_route>(stream, a);
}

void add(Stream& stream, f32* y, const f32* x, i64 count) {
  const Target t = target_of(stream);
  start_add(y, x, count, t.card, t.stream);
}

void rms_norm(Stream& stream, const RmsNormArgs& a) {
  const Target t = target_of(stream);
  const i64 narrow = a.y_q8_32 != nullptr ? card_row_bytes(ActivationForm::Q8_32, a.cols) : 0;
  const i64 wide = a.y_q8_256 != nullptr ? card_row_bytes(ActivationForm::Q8_256, a.cols) : 0;
  start_rms_norm(a, narrow, wide, t.card, t.stream);
}

// Of rows as the file has them.
void dequantize(Stream& stream, BlockType type, const void* blocks, f32* y, i64 count) {
  const Target t = target_of(stream);
  start_float_rows(type, {static_cast<const std::byte*>(blocks), nullptr, 1, count, y, t.card.books}, t.card, t.stream);
}

template <void (*kStart)(BlockType, const PackArgs&, const Card&, CUstream_st*)>
void reorder(Stream& stream, const ReorderArgs& a) {
  CHECK(has_blocks(a.type));
  const Target t = target_of(stream);
  kStart(a.type, {static_cast<const std::byte*>(a.from), static_cast<std::byte*>(a.to), a.rows, a.cols}, t.card, t.stream);
}

}  // namespace

}  // namespace cuda

const Ops& cuda_ops() {
  static constexpr Ops kOps{.name = "cuda",
                            .row_alignment = kDeviceRowAlignment,
                            .multiplies_floats = false,
                            .quantize = cuda::quantize,
                            .matmul = cuda::matmul,
                            .head_matmul = cuda::head_matmul,
                            .rms_norm = cuda::rms_norm,
                            .attention_rows = cuda::attention_rows_op,
                            .expert_ffn = cuda::expert_ffn,
                            .latent_attention = cuda::latent_attention_op,
                            .prompt_attention = cuda::prompt_attention,
                            .route = cuda::route,
                            .combine = cuda::post<CombineArgs, cuda::start_combine>,
                            .add = cuda::add,
                            .store_latents = nullptr,
                            .dequantize = cuda::dequantize,
                            .hand_over = cuda::post<HandOverArgs, cuda::start_hand_over>,
                            .attention_scratch_bytes = cuda::attention_scratch_bytes,
                            .pack = cuda::reorder<cuda::start_pack>,
                            .unpack = cuda::reorder<cuda::start_unpack>};
  return kOps;
}

}  // namespace stoker
