#include "tests/kernels/cpu/matmul_cases.h"

#include <cmath>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/base/rng.h"
#include "kernels/format/f16.h"
#include "kernels/ref/unpack.h"

namespace stoker::test {

namespace {

// --- the float fields of each block
// ----------------------------------------------------------------------------------

struct FormatFacts {
  BlockType type;
  std::vector<size_t> halves;  // byte offsets of f16 scales
  // Largest magnitude of the integers that a kernel may multiply x with, in units of the code of
  // kernels/ref/unpack. Where unsigned codes are used and an offset is taken off afterwards, both count: 16 +
  // 8 for Q4_0.
  i64 code_reach;
};

const FormatFacts& facts(BlockType type) {
  static const std::vector<FormatFacts> all = {
      {BlockType::Q4_0, {offsetof(BlockQ4_0, d)}, 24},
      {BlockType::Q4_1, {offsetof(BlockQ4_1, d), offsetof(BlockQ4_1, m)}, 16},
      {BlockType::Q5_0, {offsetof(BlockQ5_0, d)}, 48},
      {BlockType::Q5_1, {offsetof(BlockQ5_1, d), offsetof(BlockQ5_1, m)}, 32},
      {BlockType::Q8_0, {offsetof(BlockQ8_0, d)}, 128},
      {BlockType::IQ4_NL, {offsetof(BlockIQ4_NL, d)}, 128},
      {BlockType::MXFP4, {}, 12},
      {BlockType::Q2_K, {offsetof(BlockQ2_K, d), offsetof(BlockQ2_K, dmin)}, 4},
      {BlockType::Q3_K, {offsetof(BlockQ3_K, d)}, 12},
      {BlockType::Q4_K, {offsetof(BlockQ4_K, d), offsetof(BlockQ4_K, dmin)}, 16},
      {BlockType::Q5_K, {offsetof(BlockQ5_K, d), offsetof(BlockQ5_K, dmin)}, 32},
      {BlockType::Q6_K, {offsetof(BlockQ6_K, d)}, 96},
      {BlockType::IQ2_XXS, {offsetof(BlockIQ2_XXS, d)}, 43},
      {BlockType::IQ2_XS, {offsetof(BlockIQ2_XS, d)}, 43},
      {BlockType::IQ2_S, {offsetof(BlockIQ2_S, d)}, 43},
      {BlockType::IQ3_XXS, {offsetof(BlockIQ3_XXS, d)}, 62},
      {BlockType::IQ3_S, {offsetof(BlockIQ3_S, d)}, 15},
      {BlockType::IQ4_XS, {offsetof(BlockIQ4_XS, d)}, 128},
      {BlockType::IQ1_S, {offsetof(BlockIQ1_S, d)}, 25},
      {BlockType::IQ1_M, {}, 27},
      {BlockType::F16, {}, 1},
      {BlockType::BF16, {}, 1},
      {BlockType::F32, {}, 1},
  };
  for (const FormatFacts& f : all)
    if (f.type == type) return f;
  fail("no test facts about block type {}", info(type).name);
}

template <class T>
void put(std::byte* p, T value) {
  std::memcpy(p, &value, sizeof value);
}

u16 scale_bits(Fill fill, Rng& rng) {
  switch (fill) {
    case Fill::random:
      return static_cast<u16>((rng.next() & 0x83ff) | static_cast<u64>(5 + rng.below(8)) << 10);
    case Fill::zeros:
      return 0;
    case Fill::top_bits:
      return 1;
    case Fill::all_bits:
    case Fill::all_but_top:
      return 0x7bff;
  }
  return 0;
}

void fill_quantised(std::byte* block, const FormatFacts& format, Fill fill, Rng& rng) {
  const i64 bytes = info(format.type).block_bytes;
  for (i64 i = 0; i < bytes; i++) {
    u64 value = fill == Fill::random        ? rng.next() >> 56
                : fill == Fill::all_bits    ? 0xff
                : fill == Fill::top_bits    ? 0x80
                : fill == Fill::all_but_top ? 0x7f
                                            : 0;
    block[i] = static_cast<std::byte>(value);
  }
  for (size_t offset : format.halves) put(block + offset, scale_bits(fill, rng));
  if (format.type == BlockType::MXFP4) {
    u64 e = fill == Fill::random                            ? 117 + rng.next() % 16
            : fill == Fill::zeros || fill == Fill::top_bits ? 0
                                                            : 200;
    block[offsetof(BlockMXFP4, e)] = static_cast<std::byte>(e);
  }
  if (format.type == BlockType::IQ1_M) {  // the f16 in the top nibbles of four words
    u32 d = scale_bits(fill, rng);
    for (u32 i = 0; i < 4; i++) {
      std::byte* word = block + offsetof(BlockIQ1_M, scales) + 2 * i;
      u16 old;
      std::memcpy(&old, word, sizeof old);
      put(word, static_cast<u16>((old & 0xfffu) | (d >> (4 * i) & 15u) << 12));
    }
  }
}

f32 float_weight(Fill fill, Rng& rng) {
  switch (fill) {
    case Fill::random:
      return static_cast<f32>(rng.normal());
    case Fill::zeros:
      return 0;
    case Fill::top_bits:
      return 0x1p-24f;  // denormal in f16
    case Fill::all_bits:
    case Fill::all_but_top:
      return 65504;
  }
  return 0;
}

void fill_row(std::byte* row, const MatmulCase& c, Rng& rng) {
  for (i64 i = 0; i < c.cols; i++) {
    switch (c.type) {
      case BlockType::F32:
        put(row + 4 * i, float_weight(c.fill, rng));
        break;
      case BlockType::F16:
        put(row + 2 * i, f32_to_f16(float_weight(c.fill, rng)));
        break;
      case BlockType::BF16:
        put(row + 2 * i, f32_to_bf16(float_weight(c.fill, rng)));
        break;
      default:
        if (i % info(c.type).block_weights == 0)
          fill_quantised(row + row_bytes(c.type, i), facts(c.type), c.fill, rng);
    }
  }
}

// --- activations
// ---------------------------------------------------------------------------------------------------

i8 activation_code(Fill fill, i64 row, Rng& rng) {
  if (fill == Fill::random || fill == Fill::zeros) return static_cast<i8>(rng.below(255) - 127);
  return row % 2 == 0 ? 127 : -127;
}

void fill_activations(std::byte* out, const MatmulCase& c, ActivationForm form, i64 row, Rng& rng) {
  const f32 d = c.fill == Fill::random ? static_cast<f32>(0.001 + rng.uniform()) : 1.0f;
  if (form == ActivationForm::F32) {
    for (i64 i = 0; i < c.cols; i++) {
      f32 x = c.fill == Fill::random ? static_cast<f32>(rng.normal()) : activation_code(c.fill, row, rng);
      put(out + 4 * i, x);
    }
  } else if (form == ActivationForm::Q8_32) {
    for (i64 b = 0; b < c.cols / 32; b++) {
      ActQ8_32 block{d, 0, {}};
      for (i8& q : block.q) block.sum += q = activation_code(c.fill, row, rng);
      put(out + b * i64{sizeof block}, block);
    }
  } else {
    for (i64 b = 0; b < c.cols / 256; b++) {
      ActQ8_256 block{d, {}, {}};
      for (i64 i = 0; i < 256; i++) {
        block.q[i] = activation_code(c.fill, row, rng);
        block.sums[i / 16] = static_cast<i16>(block.sums[i / 16] + block.q[i]);
      }
      put(out + b * i64{sizeof block}, block);
    }
  }
}

f64 activation_value(const std::byte* x, ActivationForm form, i64 col) {
  if (form == ActivationForm::F32) return reinterpret_cast<const f32*>(x)[col];
  if (form == ActivationForm::Q8_32) {
    const ActQ8_32& block = reinterpret_cast<const ActQ8_32*>(x)[col / 32];
    return static_cast<f64>(block.d) * block.q[col % 32];
  }
  const ActQ8_256& block = reinterpret_cast<const ActQ8_256*>(x)[col / 256];
  return static_cast<f64>(block.d) * block.q[col % 256];
}

// --- tolerance
// -----------------------------------------------------------------------------------------------------

// What a kernel may multiply |x| with for each weight of one row: the weight with its largest code, plus its
// minimum. Not |w|: code and minimum (or offset) are summed apart and may cancel.
template <class Block>
void add_magnitudes(const std::byte* row, i64 cols, BlockType type, std::vector<f64>& out) {
  const i64 weights = info(type).block_weights;
  const f64 reach = static_cast<f64>(facts(type).code_reach);
  for (i64 col = 0; col < cols; col += weights) {
    ref::UnpackedBlock block;
    ref::unpack(*reinterpret_cast<const Block*>(row + row_bytes(type, col)), block);
    for (i64 i = 0; i < weights; i++) {
      f64 magnitude = std::abs(static_cast<f64>(block.d) * block.scale[i / 16]) * reach;
      if (block.has_offset) magnitude += std::abs(static_cast<f64>(block.m) * block.offset[i / 16]);
      out[static_cast<size_t>(col + i)] = magnitude;
    }
  }
}

void magnitudes(const std::byte* row, i64 cols, BlockType type, std::vector<f64>& out) {
  out.resize(static_cast<size_t>(cols));
  for (i64 i = 0; i < cols; i++) {
    f64& magnitude = out[static_cast<size_t>(i)];
    if (type == BlockType::F32) magnitude = std::abs(reinterpret_cast<const f32*>(row)[i]);
    if (type == BlockType::F16) magnitude = std::abs(f16_to_f32(reinterpret_cast<const u16*>(row)[i]));
    if (type == BlockType::BF16) magnitude = std::abs(bf16_to_f32(reinterpret_cast<const u16*>(row)[i]));
  }
  for_each_block_format([&]<class Block>(BlockType format) {
    if (format == type) add_magnitudes<Block>(row, cols, type, out);
  });
}

const char* fill_name(Fill fill) {
  switch (fill) {
    case Fill::random:
      return "random";
    case Fill::zeros:
      return "zeros";
    case Fill::all_bits:
      return "all bits";
    case Fill::top_bits:
      return "top bits";
    case Fill::all_but_top:
      return "all but top bits";
  }
  return "?";
}

}  // namespace

std::string MatmulCase::name() const {
  return fmt::format("{} {} {}x{} tokens {} {}{}", info(type).name, exact ? "f32" : "q8", rows, cols, tokens,
                     fill_name(fill), scattered ? " scattered" : "");
}

std::vector<MatmulCase> matmul_cases() {
  struct Shape {
    i64 rows, blocks, tokens;
    bool scattered;
  };
  // Row counts around the turns of four rows, odd block counts, rows that kernels take in several pieces, every
  // tile of tokens (4 + 4, 4 + 1, 2 + 1, ...).
  const Shape shapes[] = {{1, 1, 1, false},  {3, 2, 2, true},   {3, 5, 3, false},
                          {64, 1, 5, true},  {67, 3, 8, false}, {5, 7, 8, true},
                          {4, 28, 5, false}, {9, 2, 1, true},   {1, 3, 19, true},
                          // Tokens and rows around the turns and passes of a GEMM, blocks around its panels.
                          {1, 2, 9, false},  {11, 4, 33, true}, {19, 5, 131, true}, {3, 1, 259, false},
                          {2, 37, 10, true}, {13, 33, 12, false},
                          // More blocks than a kernel takes at once.
                          {2, 67, 3, false}};
  std::vector<MatmulCase> cases;
  for (const BlockTypeInfo& type : all_block_types()) {
    for (bool exact : {false, true}) {
      bool is_float = weight_input(type.type, false) == ActivationForm::F32;
      if (is_float && !exact) continue;
      for (const Shape& s : shapes) {
        if (is_float)  // any number of columns: tails of the vector width
          for (i64 cols : {s.blocks, s.blocks * 8 + 1, s.blocks * 16, s.blocks * 32 + 15})
            cases.push_back({type.type, exact, s.rows, cols, s.tokens, Fill::random, s.scattered});
        else
          cases.push_back(
              {type.type, exact, s.rows, s.blocks * type.block_weights, s.tokens, Fill::random, s.scattered});
      }
      // More weights than one pass over the tokens takes.
      if (is_float || !exact) cases.push_back({type.type, exact, 150, 7168, 6, Fill::random, true});
      for (Fill fill : {Fill::zeros, Fill::all_bits, Fill::top_bits, Fill::all_but_top})
        for (i64 tokens : {7, 14})
          cases.push_back({type.type, exact, 5, (is_float ? 19 : 3) * type.block_weights, tokens, fill, false});
    }
  }
  return cases;
}

std::vector<MatmulCase> matmul_bench_cases(i64 bytes, i64 cols, i64 tokens, bool float_activations) {
  std::vector<MatmulCase> cases;
  for (const BlockTypeInfo& type : all_block_types()) {
    bool exact = float_activations || weight_input(type.type, false) == ActivationForm::F32;
    i64 rows = div_up(bytes, row_bytes(type.type, cols));
    cases.push_back({type.type, exact, rows, cols, tokens, Fill::random, false});
  }
  return cases;
}

MatmulData::MatmulData(const MatmulCase& c, u64 seed)
    : case_(c), form_(weight_input(c.type, c.exact)), w_row_bytes_(row_bytes(c.type, c.cols)) {
  Rng rng(seed);
  // Vectors start at a multiple of 16; two bytes (or one, where blocks are odd anyway) further is as bad as a
  // file gets.
  weights_offset_ = c.type == BlockType::F32 ? 4 : c.type == BlockType::MXFP4 ? 1 : 2;
  weights_.resize(static_cast<size_t>(weights_offset_ + c.rows * w_row_bytes_));
  for (i64 r = 0; r < c.rows; r++) fill_row(weights_.data() + weights_offset_ + r * w_row_bytes_, c, rng);

  x_stride_ = activation_row_bytes(form_, c.cols) + (c.scattered ? 12 : 0);
  const i64 x_rows = c.scattered ? 2 * c.tokens : c.tokens;
  activations_.resize(static_cast<size_t>(x_rows * x_stride_));
  for (i64 i = 0; i < x_rows; i++) fill_activations(activations_.data() + i * x_stride_, c, form_, i, rng);
  if (c.scattered)
    for (i64 t = 0; t < c.tokens; t++) {
      x_rows_.push_back(static_cast<i32>(rng.below(x_rows)));           // may repeat
      y_rows_.push_back(static_cast<i32>(2 * (c.tokens - 1 - t) + 1));  // backwards, every other row
    }
}

MatmulTile MatmulData::tile() const {
  return {.w = weights_.data() + weights_offset_,
          .w_row_bytes = w_row_bytes_,
          .rows = case_.rows,
          .cols = case_.cols,
          .x = activations_.data(),
          .x_stride_bytes = x_stride_,
          .x_rows = case_.scattered ? x_rows_.data() : nullptr,
          .y = nullptr,
          .y_stride = output_stride(),
          .y_rows = case_.scattered ? y_rows_.data() : nullptr,
          .tokens = case_.tokens};
}

i64 MatmulData::output_rows() const { return case_.scattered ? 2 * case_.tokens : case_.tokens; }

const std::byte* MatmulData::row(i64 index) const {
  return weights_.data() + weights_offset_ + index * w_row_bytes_;
}

const std::byte* MatmulData::activation(i64 token) const {
  i64 index = case_.scattered ? x_rows_[static_cast<size_t>(token)] : token;
  return activations_.data() + index * x_stride_;
}

// A sum of n rounded terms is off by at most n * 2^-24 * (sum of their magnitudes). Integer kernels round per
// block: the product of the scales, the conversion, the sum; then the lanes are added. Float ones round per
// weight.
f64 MatmulData::tolerance(i64 token, i64 row_index) {
  if (magnitude_row_ != row_index) magnitudes(row(row_index), case_.cols, case_.type, magnitude_);
  magnitude_row_ = row_index;
  f64 sum = 0;
  for (i64 i = 0; i < case_.cols; i++)
    sum += magnitude_[static_cast<size_t>(i)] * std::abs(activation_value(activation(token), form_, i));
  i64 roundings = form_ == ActivationForm::F32 ? case_.cols : 2 * case_.cols / info(case_.type).block_weights;
  return static_cast<f64>(roundings + 8) * 0x1p-24 * sum;
}

}  // namespace stoker::test
