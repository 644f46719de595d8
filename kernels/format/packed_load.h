// One packed block into registers: what each lane of a warp does for its row.
#pragma once

#include <cstring>
#include <utility>

#include "kernels/format/packed.h"

namespace stoker {

namespace packed_load {

// kBytes (1, 2, 4, 8, 16), aligned to that, into whole words. Weights pass by once: they are kept out of L1, which holds
// the activations.
template <int kBytes>
HOST_DEVICE void piece(const std::byte* from, u32* w) {
#ifdef __CUDA_ARCH__
  if constexpr (kBytes == 16)
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3]) : "l"(from));
  else if constexpr (kBytes == 8)
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(w[0]), "=r"(w[1]) : "l"(from));
  else if constexpr (kBytes == 4)
    asm("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(w[0]) : "l"(from));
  else if constexpr (kBytes == 2)
    asm("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=r"(w[0]) : "l"(from));
  else
    asm("ld.global.nc.L1::no_allocate.u8 %0, [%1];" : "=r"(w[0]) : "l"(from));
#else
  require_aligned(from, kBytes);
  w[0] = 0;
  std::memcpy(w, from, kBytes);
#endif
}

template <class Block, size_t... kIndex>
HOST_DEVICE void pieces(const std::byte* block, i64 row, u32* w, std::index_sequence<kIndex...>) {
  constexpr auto kPieces = Packed<Block>::kPieces;
  (piece<kPieces.at[kIndex].bytes>(block + kPackedRows * kPieces.offset(kIndex) + row * kPieces.at[kIndex].bytes,
                                   w + kPieces.word(kIndex)),
   ...);
}

}  // namespace packed_load

template <class Block>
constexpr i64 kBlockWords = Packed<Block>::kPieces.words();

// Row `row` (0 .. 31) of the tile column at `block` (packed.h) into w[kBlockWords<Block>].
template <class Block>
HOST_DEVICE void load_block(const std::byte* block, i64 row, u32* w) {
  packed_load::pieces<Block>(block, row, w, std::make_index_sequence<Packed<Block>::kPieces.count()>());
}

}  // namespace stoker
