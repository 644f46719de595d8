#include "runtime/activation_rows.h"

namespace stoker {

namespace {

constexpr i64 kAlignment = 64;

// Rows of devices may be up to kDeviceRowAlignment further apart.
i64 form_bytes(ActivationForm form, i64 values, i64 unit, i64 rows) {
  return round_up(activation_row_bytes(form, round_up(values, unit)) + rows * kDeviceRowAlignment, kAlignment);
}
i64 q8_32_bytes(i64 values, i64 rows) { return form_bytes(ActivationForm::Q8_32, values, 32, rows); }
i64 q8_256_bytes(i64 values, i64 rows) { return form_bytes(ActivationForm::Q8_256, values, 256, rows); }

}  // namespace

i64 ActivationRows::bytes_needed(i64 max_values, i64 max_rows) {
  return q8_32_bytes(max_values, max_rows) + q8_256_bytes(max_values, max_rows);
}

ActivationRows::ActivationRows(const Ops& ops, i64 max_values)
    : ops_(ops),
      memory_(bytes_needed(max_values, 0), "8-bit activations"),
      q8_32_(memory_.data()),
      q8_256_(memory_.data() + q8_32_bytes(max_values, 0)) {}

ActivationRows::ActivationRows(const Ops& ops, i64 max_values, i64 max_rows, std::byte* memory)
    : ops_(ops), q8_32_(memory), q8_256_(memory + q8_32_bytes(max_values, max_rows)) {}

void ActivationRows::set(const f32* x, i64 rows, i64 cols, i64 stride) {
  x_ = x;
  rows_ = rows;
  cols_ = cols;
  stride_ = stride;
  have_q8_32_ = have_q8_256_ = false;
}

void ActivationRows::set_normed(Stream& stream, RmsNormArgs args, std::initializer_list<BlockType> readers, bool exact) {
  set(args.y, args.rows, args.cols, args.y_stride);
  for (BlockType type : readers) {
    const ActivationForm form = weight_input(type, exact);
    if (form == ActivationForm::Q8_32) args.y_q8_32 = made_with(form);
    if (form == ActivationForm::Q8_256) args.y_q8_256 = made_with(form);
  }
  ops_.rms_norm(stream, args);
}

void* ActivationRows::made_with(ActivationForm form) {
  if (form == ActivationForm::F32) return nullptr;
  (form == ActivationForm::Q8_32 ? have_q8_32_ : have_q8_256_) = true;
  return form == ActivationForm::Q8_32 ? q8_32_ : q8_256_;
}

Activations ActivationRows::as(Stream& stream, ActivationForm form) {
  if (form == ActivationForm::F32) return {x_, form, stride_ * i64{sizeof(f32)}};
  bool& have = form == ActivationForm::Q8_32 ? have_q8_32_ : have_q8_256_;
  void* out = form == ActivationForm::Q8_32 ? q8_32_ : q8_256_;
  if (!have)
    ops_.quantize(stream, {.x = x_, .rows = rows_, .cols = cols_, .x_stride = stride_, .form = form, .out = out});
  have = true;
  return {out, form, round_up(activation_row_bytes(form, cols_), ops_.row_alignment)};
}

void ActivationRows::multiply(Stream& stream, const Matrix& weights, bool exact, f32* y, i64 y_stride) {
  Activations x = as(stream, weight_input(weights.type, exact));
  ops_.matmul(stream, {.weights = weights, .x = x, .tokens = rows_, .y = y, .y_stride = y_stride});
}

}  // namespace stoker
