#include "kernels/format/decode_books.h"

#include "kernels/format/codebooks.h"

namespace stoker {

namespace {

// Digits of eight weights of `entry`; `values` are the book's, ascending.
u32 nibbles(u64 entry, const std::array<i8, 3>& values) {
  u32 result = 0;
  for (u32 j = 0; j < 8; j++) {
    i8 value = static_cast<i8>(entry >> (8 * j));
    for (u32 digit = 0; digit < 3; digit++)
      if (values[digit] == value) result |= digit << (4 * j);
  }
  return result;
}

u32 nibble_signs(u32 byte) {
  u32 result = 0;
  for (u32 j = 0; j < 8; j++) result |= (byte >> j & 1u) << (4 * j + 2);
  return result;
}

u32 byte_signs(u32 byte) {
  u32 result = 0;
  for (u32 j = 0; j < 4; j++) result |= (byte >> j & 1u) << (8 * j + 7) | (byte >> (4 + j) & 1u) << (8 * j + 3);
  return result;
}

// 128 sign words are those of 7-bit indices, 256 those of whole bytes.
void fill_signs(DecodeBooks& books, const BookRange& range, u32 (*spread)(u32)) {
  for (i64 i = 0; i < range.signs; i++) {
    u32 byte = range.signs == 128 ? kSignBytes[static_cast<size_t>(i)] : static_cast<u32>(i);
    books[static_cast<size_t>(range.first + i)] = spread(byte);
  }
}

template <size_t kCount>
void fill_nibbles(DecodeBooks& books, const BookRange& range, const std::array<u64, kCount>& grid,
                  const std::array<i8, 3>& values) {
  for (size_t i = 0; i < kCount; i++)
    books[static_cast<size_t>(range.first + range.signs) + i] = nibbles(grid[i], values);
}

template <size_t kCount>
void fill_bytes(DecodeBooks& books, const BookRange& range, const std::array<u32, kCount>& grid) {
  for (size_t i = 0; i < kCount; i++) books[static_cast<size_t>(range.first + range.signs) + i] = grid[i];
}

DecodeBooks make_books() {
  constexpr std::array<i8, 3> kTernary = {-1, 0, 1}, kIq2 = {8, 25, 43};
  DecodeBooks books{};
  fill_nibbles(books, kBookIq1, kGridIq1S, kTernary);
  fill_signs(books, kBookIq2Xxs, nibble_signs);
  fill_nibbles(books, kBookIq2Xxs, kGridIq2Xxs, kIq2);
  fill_signs(books, kBookIq2Xs, nibble_signs);
  fill_nibbles(books, kBookIq2Xs, kGridIq2Xs, kIq2);
  fill_signs(books, kBookIq2S, nibble_signs);
  fill_nibbles(books, kBookIq2S, kGridIq2S, kIq2);
  fill_signs(books, kBookIq3Xxs, byte_signs);
  fill_bytes(books, kBookIq3Xxs, kGridIq3Xxs);
  fill_signs(books, kBookIq3S, byte_signs);
  fill_bytes(books, kBookIq3S, kGridIq3S);
  return books;
}

}  // namespace

const DecodeBooks& decode_books() {
  static const DecodeBooks books = make_books();
  return books;
}

}  // namespace stoker
