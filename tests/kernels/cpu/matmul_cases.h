// The matrix products that tests compare and bench/kernels times: one list of formats, shapes, token counts
// and contents, and the data of a case.
#pragma once

#include <string>
#include <vector>

#include "kernels/cpu/leaf.h"

namespace stoker::test {

// What weights and activations hold. A pattern means: every byte of every block but the float scales, which
// are as large or small as they may be; activations are all 127 or all -127, so that every intermediate sum
// is as large as the format allows.
enum class Fill {
  random,       // random bits, finite scales of either sign; random activations
  zeros,        // every byte of the weights is zero
  all_bits,     // 0xff, largest scales
  top_bits,     // 0x80 (-128 where a byte is signed), smallest denormal scales
  all_but_top,  // 0x7f, largest scales
};

struct MatmulCase {
  BlockType type;
  bool exact;  // float activations
  i64 rows, cols, tokens;
  Fill fill;
  bool scattered;  // activation and output rows through index lists, in another order and with gaps

  std::string name() const;  // "Q4_K q8 3x1280 tokens 5 random scattered"
};

// Every format in every mode it has, over shapes, token counts and contents that have broken kernels before.
std::vector<MatmulCase> matmul_cases();

// One case per format (weights x 8-bit activations; float ones for float formats, or for all): `bytes` of weights in
// rows of `cols`.
std::vector<MatmulCase> matmul_bench_cases(i64 bytes, i64 cols, i64 tokens, bool float_activations);

// The operands of a case. The weights end at the end of an allocation and are aligned to 2 bytes only (to 1
// where a block has an odd size), so that a sanitizer sees what reads beyond them.
class MatmulData {
 public:
  MatmulData(const MatmulCase& c, u64 seed);

  // Everything but y.
  MatmulTile tile() const;
  // The y that a scattered or plain case needs: output_rows() rows of output_stride() elements.
  i64 output_rows() const;
  i64 output_stride() const { return case_.rows + (case_.scattered ? 3 : 0); }
  i64 output_row(i64 token) const { return case_.scattered ? y_rows_[static_cast<size_t>(token)] : token; }

  // Upper bound of |y computed - y| for float arithmetic in any order, given the format's integer codes. See
  // the .cc.
  f64 tolerance(i64 token, i64 row);

 private:
  const std::byte* row(i64 index) const;
  const std::byte* activation(i64 token) const;

  MatmulCase case_;
  ActivationForm form_;
  i64 w_row_bytes_, x_stride_;
  std::vector<std::byte> weights_;
  std::vector<std::byte> activations_;
  std::vector<i32> x_rows_, y_rows_;
  i64 weights_offset_ = 0;
  std::vector<f64> magnitude_;  // of the last row asked for, per column
  i64 magnitude_row_ = -1;
};

}  // namespace stoker::test
