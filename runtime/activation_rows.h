// ActivationRows: some rows of activations and their 8-bit forms, each made once, when first asked for.
// Owner: the engine thread.
#pragma once

#include <initializer_list>

#include "kernels/base/buffer.h"
#include "kernels/ops.h"

namespace stoker {

class ActivationRows {
 public:
  // Room for the quantised forms of `max_values` activations (rows x columns).
  ActivationRows(const Ops& ops, i64 max_values);
  // The same where the ops compute: in bytes_needed() at `memory`, a multiple of 64, for at most `max_rows` rows.
  ActivationRows(const Ops& ops, i64 max_values, i64 max_rows, std::byte* memory);
  static i64 bytes_needed(i64 max_values, i64 max_rows);

  // Points at float rows, row r at x + r * stride. They must stay unchanged until the next set().
  void set(const f32* x, i64 rows, i64 cols, i64 stride);
  void set(const f32* x, i64 rows, i64 cols) { set(x, rows, cols, cols); }

  // The same of rows that args.x has not yet: norms them to args.y, and makes with them what matrices of these types want of
  // them: on a device in one step.
  void set_normed(Stream& stream, RmsNormArgs args, std::initializer_list<BlockType> readers, bool exact);
  // Where the 8-bit rows of set() are to be for as() to find them there, when whoever makes the floats makes them too.
  void* made_with(ActivationForm form);

  Activations as(Stream& stream, ActivationForm form);

  // y[t] = weights x[t] for all rows.
  void multiply(Stream& stream, const Matrix& weights, bool exact, f32* y, i64 y_stride);

 private:
  const Ops& ops_;
  Buffer memory_;  // or none of its own
  std::byte *q8_32_, *q8_256_;
  const f32* x_ = nullptr;
  i64 rows_ = 0, cols_ = 0, stride_ = 0;
  bool have_q8_32_ = false, have_q8_256_ = false;
};

}  // namespace stoker
