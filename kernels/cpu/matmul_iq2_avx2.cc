// AVX2 matmul of IQ2_XXS, IQ2_XS and IQ2_S: entries of 8 magnitudes, and signs.
#include "kernels/cpu/gemm_turned_avx2.h"
#include "kernels/cpu/look_up_avx2.h"
#include "kernels/cpu/matmul_avx2.h"
#include "kernels/cpu/signs_avx2.h"
#include "kernels/format/blocks.h"
#include "kernels/format/codebooks.h"

namespace stoker {
namespace {

// Magnitudes are 8 .. 43: 4 * 43 * 127 = 21844 in two parts.
struct Iq2 {
  using Turned = TurnedBlock;
  static constexpr f32 kFactor = 0.125f;
  static constexpr int kRun = 2, kBias = 64;
  struct Start {};
  static __m256i start(const Start&, const TurnedBlock&) { return _mm256_setzero_si256(); }
};

struct IQ2_XXS : Iq2 {
  using Block = BlockIQ2_XXS;
  struct Prepared {
    Signs signs;
    __m256i scales;  // of the eight groups of 32, in 32-bit lanes
    Start start;
  };

  static void prepare(const Block& w, Prepared& out) {
    // The odd u32 have signs and scales. These halves are such that they come out in order.
    const __m256i first = _mm256_inserti128_si256(_mm256_castsi128_si256(load_128(w.qs)), load_128(w.qs + 16), 1);
    const __m256i second = _mm256_inserti128_si256(_mm256_castsi128_si256(load_128(w.qs + 8)), load_128(w.qs + 24), 1);
    const __m256i fields = _mm256_castps_si256(
        _mm256_shuffle_ps(_mm256_castsi256_ps(first), _mm256_castsi256_ps(second), 0b11'01'11'01));
    out.signs = Signs(add_parity(spread_sevens(fields)));
    out.scales = odd_scales_of_fields(fields);
  }

  static void codes(const Block& w, const Prepared&, int h, int k, __m256i (&out)[2]) {
    const u8* index = reinterpret_cast<const u8*>(w.qs) + 16 * h;
#pragma GCC unroll 2
    for (int i = k; i < k + 2; i++) {
      const u8 four[4] = {index[i], index[8 + i], index[32 + i], index[40 + i]};
      out[i - k] = look_up(entries<u64>(&kGridIq2Xxs), four);
    }
  }
  static __m256i signs(const Prepared& p, int h, int k) { return p.signs.part(h, k); }
  static __m256i scales(const Prepared& p, int h, int) { return spread_words(p.scales, 4 * h, 4 * h + 2); }
  static __m128 d(const Block* const (&w)[4]) { return halves_of(w); }
};

// What IQ2_XS and IQ2_S share: indices of more than a byte, a scale per 16 weights.
struct Iq2Words : Iq2 {
  struct Prepared {
    alignas(32) u16 index[8][4];
    Signs signs;
    __m256i scales;  // of the sixteen groups of 16
    Start start;
  };

  // 2 s + 1 of sixteen nibbles s in order.
  static __m256i unpack_scales(const u8 (&nibbles)[8]) {
    const __m128i packed = load_64(nibbles);
    const __m256i bytes = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(packed, _mm_srli_epi16(packed, 4)));
    const __m256i doubled = _mm256_and_si256(_mm256_add_epi16(bytes, bytes), _mm256_set1_epi16(30));
    return _mm256_or_si256(doubled, _mm256_set1_epi16(1));
  }

  static void look_up_parts(const u64* book, const Prepared& p, int h, int k, __m256i (&out)[2]) {
    const auto& index = p.index;
#pragma GCC unroll 2
    for (int i = k; i < k + 2; i++) {
      const u16 four[4] = {index[2 * h][i], index[2 * h + 1][i], index[4 + 2 * h][i], index[5 + 2 * h][i]};
      out[i - k] = look_up(book, four);
    }
  }
  static __m256i signs(const Prepared& p, int h, int k) { return p.signs.part(h, k); }
  static __m256i scales(const Prepared& p, int h, int k) {
    return spread_words(p.scales, 4 * h + k / 2, 4 * h + 2 + k / 2);
  }
};

struct IQ2_XS : Iq2Words {
  using Block = BlockIQ2_XS;

  static void prepare(const Block& w, Prepared& out) {
    const __m256i first = load_256(w.qs), second = load_256(w.qs + 16), nine = _mm256_set1_epi16(511);
    store_256(out.index[0], _mm256_and_si256(first, nine));
    store_256(out.index[4], _mm256_and_si256(second, nine));
    const __m256i sevens = _mm256_packus_epi16(_mm256_srli_epi16(first, 9), _mm256_srli_epi16(second, 9));
    out.signs = Signs(add_parity(_mm256_permute4x64_epi64(sevens, 0b11'01'10'00)));
    out.scales = unpack_scales(w.scales);
  }

  static void codes(const Block&, const Prepared& p, int h, int k, __m256i (&out)[2]) {
    look_up_parts(entries<u64>(&kGridIq2Xs), p, h, k, out);
  }
  static __m128 d(const Block* const (&w)[4]) { return halves_of(w); }
};

struct IQ2_S : Iq2Words {
  using Block = BlockIQ2_S;

  static void prepare(const Block& w, Prepared& out) {
    // Two high bits of index i: bits 2 (i % 4), + 1 of qh[i / 4], moved to bits 8 and 9 through a product
    // with a power of two.
    const __m256i high_bytes = _mm256_broadcastsi128_si256(load_64(w.qh));
    const __m256i move = _mm256_set1_epi64x(0x0004'0010'0040'0100);
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      const char k = static_cast<char>(4 * half);
      const __m256i spread =
          _mm256_setr_epi8(k, -1, k, -1, k, -1, k, -1, k + 1, -1, k + 1, -1, k + 1, -1, k + 1, -1, k + 2, -1,
                           k + 2, -1, k + 2, -1, k + 2, -1, k + 3, -1, k + 3, -1, k + 3, -1, k + 3, -1);
      const __m256i high = _mm256_mullo_epi16(_mm256_shuffle_epi8(high_bytes, spread), move);
      const __m256i low = _mm256_cvtepu8_epi16(load_128(w.qs + 16 * half));
      store_256(out.index[4 * half], _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi16(0x300))));
    }
    out.signs = Signs(load_256(w.signs));
    out.scales = unpack_scales(w.scales);
  }

  static void codes(const Block&, const Prepared& p, int h, int k, __m256i (&out)[2]) {
    look_up_parts(entries<u64>(&kGridIq2S), p, h, k, out);
  }
  static __m128 d(const Block* const (&w)[4]) { return halves_of(w); }
};

}  // namespace

void fill_matmul_iq2_avx2(LeafTable& table) {
  set_turned_leaves<IQ2_XXS>(table, BlockType::IQ2_XXS);
  set_turned_leaves<IQ2_XS>(table, BlockType::IQ2_XS);
  set_turned_leaves<IQ2_S>(table, BlockType::IQ2_S);
}

}  // namespace stoker
