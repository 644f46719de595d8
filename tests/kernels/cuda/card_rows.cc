#include "tests/kernels/cuda/card_rows.h"

#include <cstring>

#include "kernels/cuda/activation_rows.h"

namespace stoker::test {

namespace {

template <class T>
void put(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

void place(const ActQ8_32& block, i64 b, i64 cols, std::byte* row) {
  std::memcpy(row + 32 * b, block.q, 32);
  put(row + cols + 4 * b, block.d);
  put(row + cols + cols / 32 * 4 + 4 * b, block.sum);
}

void place(const ActQ8_256& block, i64 b, i64 cols, std::byte* row) {
  std::memcpy(row + 256 * b, block.q, 256);
  put(row + cols + 4 * b, block.d);
  std::memcpy(row + cols + cols / 256 * 4 + 32 * b, block.sums, 32);
}

template <class Block>
void convert(const std::byte* x, i64 rows, i64 cols, i64 stride, i64 weights, CardRows& out) {
  for (i64 r = 0; r < rows; r++)
    for (i64 b = 0; b < cols / weights; b++) {
      Block block;
      std::memcpy(&block, x + r * stride + b * i64{sizeof block}, sizeof block);
      place(block, b, cols, out.bytes.data() + r * out.stride_bytes);
    }
}

}  // namespace

CardRows card_rows(const std::byte* x, i64 rows, i64 cols, i64 stride, ActivationForm form) {
  CardRows out{cuda::card_row_bytes(form, cols), {}};
  out.bytes.resize(static_cast<size_t>(rows * out.stride_bytes));
  if (form == ActivationForm::Q8_32)
    convert<ActQ8_32>(x, rows, cols, stride, 32, out);
  else
    convert<ActQ8_256>(x, rows, cols, stride, 256, out);
  return out;
}

}  // namespace stoker::test
