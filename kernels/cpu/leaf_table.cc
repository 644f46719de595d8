#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/cpu/leaf.h"

namespace stoker {

// A GEMM has the bits of the leaf of its own level. Where `fill` brings another leaf and no GEMM, the one from below
// must go.
static void overlay(LeafTable& table, void (*fill)(LeafTable&)) {
  const LeafTable below = table;
  fill(table);
  auto drop = [](const MatmulLeaf (&old_leaf)[kBlockTypeLimit], const MatmulLeaf (&leaf)[kBlockTypeLimit],
                 const MatmulLeaf (&old_gemm)[kBlockTypeLimit], MatmulLeaf (&gemm)[kBlockTypeLimit]) {
    for (i64 i = 0; i < kBlockTypeLimit; i++)
      if (leaf[i] != old_leaf[i] && gemm[i] == old_gemm[i]) gemm[i] = nullptr;
  };
  drop(below.matmul_f32, table.matmul_f32, below.gemm_f32, table.gemm_f32);
  drop(below.matmul_q8, table.matmul_q8, below.gemm_q8, table.gemm_q8);
}

static LeafTable build(IsaLevel level) {
  LeafTable table{};
  fill_ref(table);
  if (level >= IsaLevel::avx2) overlay(table, fill_avx2);
  if (level >= IsaLevel::avx512) overlay(table, fill_avx512);
  return table;
}

const LeafTable& leaf_table(IsaLevel level) {
  static const LeafTable ref = build(IsaLevel::ref);
  static const LeafTable avx2 = build(std::min(IsaLevel::avx2, best_isa_level()));
  static const LeafTable avx512 = build(std::min(IsaLevel::avx512, best_isa_level()));
  CHECK(level <= best_isa_level());
  switch (level) {
    case IsaLevel::ref: return ref;
    case IsaLevel::avx2: return avx2;
    case IsaLevel::avx512: break;
  }
  return avx512;
}

}  // namespace stoker
