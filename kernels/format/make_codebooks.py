#!/usr/bin/env python3
"""Writes codebooks.cc from a table of the formats' code books.

Usage: make_codebooks.py codebooks.tsv > codebooks.cc

A line of the table is NAME <tab> INDEX <tab> the magnitudes in weight order. The books hold few distinct values, so an
entry is stored as its digits (2 or 3 bits per weight, weight 0 lowest) and expanded to bytes by the compiler.
"""
import sys

BOOKS = {  # name in the table: (constant, weights per entry, bits per digit, values of the digits)
    "IQ2_XXS": ("Iq2Xxs", 8, 2, [8, 25, 43]),
    "IQ2_XS": ("Iq2Xs", 8, 2, [8, 25, 43]),
    "IQ2_S": ("Iq2S", 8, 2, [8, 25, 43]),
    "IQ3_XXS": ("Iq3Xxs", 4, 3, [4, 12, 20, 28, 36, 44, 52, 62]),
    "IQ3_S": ("Iq3S", 4, 3, [1, 3, 5, 7, 9, 11, 13, 15]),
    "IQ1_S": ("Iq1S", 8, 2, [-1, 0, 1]),
}
HEAD = """// Made by make_codebooks.py; do not edit.
#include "kernels/format/codebooks.h"

#include <array>

namespace stoker {

// Entries as digits; digit j, the code of weight j, selects the byte values[digit]. Expanded at compile time.
template <class Entry, int kBits, size_t kCount, size_t kValues>
static consteval std::array<Entry, kCount> expand(const u16 (&packed)[kCount], const i8 (&values)[kValues]) {
  std::array<Entry, kCount> book{};
  for (size_t i = 0; i < kCount; i++)
    for (size_t j = 0; j < sizeof(Entry); j++) {
      u32 digit = packed[i] >> (kBits * j) & ((1u << kBits) - 1);
      book[i] |= static_cast<Entry>(static_cast<u8>(values[digit])) << (8 * j);
    }
  return book;
}

// The same for byte look-ups: the digits of four weights in a byte, or one weight.
template <size_t kCount>
static consteval BookPlanes<2, kCount> digit_planes(const u16 (&packed)[kCount]) {
  BookPlanes<2, kCount> planes{};
  for (size_t i = 0; i < kCount; i++)
    for (size_t p = 0; p < 2; p++) planes[p][i] = static_cast<u8>(packed[i] >> (8 * p));
  return planes;
}
template <size_t kCount>
static consteval BookPlanes<4, kCount> byte_planes(const std::array<u32, kCount>& book) {
  BookPlanes<4, kCount> planes{};
  for (size_t i = 0; i < kCount; i++)
    for (size_t p = 0; p < 4; p++) planes[p][i] = static_cast<u8>(kPlaneBias + (book[i] >> (8 * p) & 255u));
  return planes;
}
"""


def wrap(words, width=110):
    line = " "
    for word in words:
        if len(line) + 1 + len(word) > width:
            yield line
            line = " "
        line += " " + word
    yield line


def main():
    entries = {name: [] for name in BOOKS}
    for line in open(sys.argv[1]):
        name, _, rest = line.partition("\t")
        if name in BOOKS:
            index, values = rest.split("\t")
            assert int(index) == len(entries[name])
            entries[name].append([int(v) for v in values.split()])
    print(HEAD)
    for name, (constant, count, bits, values) in BOOKS.items():
        packed = []
        for entry in entries[name]:
            assert len(entry) == count
            packed.append("%d" % sum(values.index(v) << (bits * j) for j, v in enumerate(entry)))
        kind = "u64" if count == 8 else "u32"
        print(f"static constexpr u16 kPacked{constant}[{len(packed)}] = {{")
        print("\n".join(wrap([p + "," for p in packed])))
        print("};")
        print(f"static constexpr i8 kValues{constant}[] = {{{', '.join(map(str, values))}}};")
        print(f"alignas(64) constinit const std::array<{kind}, {len(packed)}> kGrid{constant} =")
        print(f"    expand<{kind}, {bits}>(kPacked{constant}, kValues{constant});")
        if constant == "Iq1S":
            print(f"static constexpr i8 kValuesEighths{constant}[] = {{{', '.join(str(8 * (v + 1)) for v in values)}}};")
            print(f"alignas(64) constinit const std::array<{kind}, {len(packed)}> kEighths{constant} =")
            print(f"    expand<{kind}, {bits}>(kPacked{constant}, kValuesEighths{constant});\n")
            continue
        planes = 2 if count == 8 else 4
        print(f"alignas(64) constinit const BookPlanes<{planes}, {len(packed)}> kPlanes{constant} =")
        if planes == 2:
            print(f"    digit_planes(kPacked{constant});\n")
        else:
            print(f"    byte_planes(expand<{kind}, {bits}>(kPacked{constant}, kValues{constant}));\n")
    print("}  // namespace stoker")


main()
