// AVX2 matmul of IQ3_XXS and IQ3_S: entries of 4 magnitudes, and signs. Eight entries are loads or a gather, whichever
// a CPU is faster with.
#include "kernels/cpu/faster_leaf.h"
#include "kernels/cpu/gemm_turned_avx2.h"
#include "kernels/cpu/look_up_avx2.h"
#include "kernels/cpu/matmul_avx2.h"
#include "kernels/cpu/signs_avx2.h"
#include "kernels/format/blocks.h"
#include "kernels/format/codebooks.h"

namespace stoker {
namespace {

enum class LookUpBy { loads, gathers };

// What is the same in both formats: signs, and a scale per 32 weights.
struct Iq3 {
  using Turned = TurnedBlock;
  struct Start {};
  struct Prepared {
    Signs signs;
    __m256i scales;  // of the eight groups of 32, in 32-bit lanes
    Start start;
  };
  static __m256i signs(const Prepared& p, int h, int k) { return p.signs.part(h, k); }
  static __m256i scales(const Prepared& p, int h, int) { return spread_words(p.scales, 4 * h, 4 * h + 2); }
  static __m256i start(const Start&, const TurnedBlock&) { return _mm256_setzero_si256(); }

  // The bytes of qs of the groups 2 h, 2 h + 1 | 4 + 2 h, 5 + 2 h.
  static __m256i four_groups(const u8 (&qs)[64], int h) {
    const __m128i low = load_128(qs + 16 * h), high = load_128(qs + 16 * h + 32);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
  }
  // Bytes 2 k and 2 k + 1 of each of four groups, as byte `to` of 32-bit lanes.
  static __m256i index_lanes(__m256i groups, int k, int to) {
    auto lane = [&](u32 byte) { return static_cast<int>(~(0xffu << (8 * to)) | byte << (8 * to)); };
    const u32 i = static_cast<u32>(2 * k);
    return _mm256_shuffle_epi8(groups, _mm256_setr_epi32(lane(i), lane(i + 1), lane(i + 8), lane(i + 9), lane(i),
                                                         lane(i + 1), lane(i + 8), lane(i + 9)));
  }
  static __m256i gather(const u32* book, __m256i index) {
    return _mm256_i32gather_epi32(reinterpret_cast<const int*>(book), index, 4);
  }
};

// Magnitudes 4 .. 62: 4 * 62 * 127 = 31496 in two parts.
template <LookUpBy kBy>
struct IQ3_XXS : Iq3 {
  using Block = BlockIQ3_XXS;
  static constexpr f32 kFactor = 0.25f;
  static constexpr int kRun = 2, kBias = 64;

  static void prepare(const Block& w, Prepared& out) {
    const __m256i fields = load_256(w.signs);
    out.signs = Signs(add_parity(spread_sevens(fields)));
    out.scales = odd_scales_of_fields(fields);
  }

  static void codes(const Block& w, const Prepared&, int h, int k, __m256i (&out)[2]) {
    const u32* book = entries<u32>(&kGridIq3Xxs);
    const u8* index = w.qs + 16 * h;
#pragma GCC unroll 2
    for (int i = k; i < k + 2; i++)
      if constexpr (kBy == LookUpBy::gathers) {
        out[i - k] = gather(book, index_lanes(four_groups(w.qs, h), i, 0));
      } else {
        const u8 eight[8] = {index[2 * i],      index[2 * i + 1],  index[2 * i + 8],  index[2 * i + 9],
                             index[2 * i + 32], index[2 * i + 33], index[2 * i + 40], index[2 * i + 41]};
        out[i - k] = look_up(book, eight);
      }
  }
  static __m128 d(const Block* const (&w)[4]) { return halves_of(w); }
};

// Magnitudes 1 .. 15: 4 * 15 * 127 = 7620 in two parts.
template <LookUpBy kBy>
struct IQ3_S : Iq3 {
  using Block = BlockIQ3_S;
  static constexpr f32 kFactor = 1.0f;
  static constexpr int kRun = 2, kBias = 16;
  struct Prepared : Iq3::Prepared {
    alignas(32) u16 index[2][4][8];  // of the parts
  };

  static void prepare(const Block& w, Prepared& out) {
    const __m256i high_bytes = _mm256_broadcastsi128_si256(load_64(w.qh));
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
      // Bit i of a group's byte is the ninth of its index i.
      const long long group = 0x0101'0101'0101'0101;
      const __m256i spread =
          _mm256_setr_epi64x(2 * h * group, (2 * h + 1) * group, (4 + 2 * h) * group, (5 + 2 * h) * group);
      const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040'2010'0804'0201));
      const __m256i clear = _mm256_cmpeq_epi8(_mm256_andnot_si256(_mm256_shuffle_epi8(high_bytes, spread), bit), bit);
      const __m256i high = _mm256_add_epi8(clear, _mm256_set1_epi8(1)), low = four_groups(w.qs, h);
      // Halves: groups 2 h and 4 + 2 h; 2 h + 1 and 5 + 2 h. Then the pairs of two parts, half by half.
      const __m256i even = _mm256_unpacklo_epi8(low, high), odd = _mm256_unpackhi_epi8(low, high);
      const __m256i first = _mm256_unpacklo_epi32(even, odd), second = _mm256_unpackhi_epi32(even, odd);
      store_256(out.index[h][0], _mm256_permute4x64_epi64(first, 0b11'01'10'00));
      store_256(out.index[h][2], _mm256_permute4x64_epi64(second, 0b11'01'10'00));
    }
    out.signs = Signs(load_256(w.signs));
    const __m256i packed = _mm256_set1_epi32(static_cast<int>(load_u32(w.scales)));
    out.scales = odd_scales_of_fields(_mm256_sllv_epi32(packed, _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0)));
  }

  static void codes(const Block&, const Prepared& p, int h, int k, __m256i (&out)[2]) {
    const u32* book = entries<u32>(&kGridIq3S);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
      const u16(&index)[8] = p.index[h][k + i];
      if constexpr (kBy == LookUpBy::gathers)
        out[i] = gather(book, _mm256_cvtepu16_epi32(load_128(index)));
      else
        out[i] = look_up(book, index);
    }
  }
  static __m128 d(const Block* const (&w)[4]) { return halves_of(w); }
};

// A GEMM unpacks once for many tokens: loads everywhere.
template <template <LookUpBy> class Format>
void set_iq3_leaves(LeafTable& table, BlockType type, bool gathers) {
  if (gathers)
    set_turned_leaves<Format<LookUpBy::gathers>, Format<LookUpBy::loads>>(table, type);
  else
    set_turned_leaves<Format<LookUpBy::loads>>(table, type);
}

}  // namespace

void fill_matmul_iq3_avx2(LeafTable& table) {
  const bool gathers = is_faster<BlockIQ3_XXS>(multiply_turned_tile<IQ3_XXS<LookUpBy::gathers>>,
                                               multiply_turned_tile<IQ3_XXS<LookUpBy::loads>>);
  set_iq3_leaves<IQ3_XXS>(table, BlockType::IQ3_XXS, gathers);
  set_iq3_leaves<IQ3_S>(table, BlockType::IQ3_S, gathers);
}

}  // namespace stoker
