#include "kernels/base/check.h"
#include "kernels/cpu/leaf.h"

namespace stoker {

static LeafTable build(IsaLevel level) {
  LeafTable table{};
  fill_ref(table);
  if (level >= IsaLevel::avx2) fill_avx2(table);
  if (level >= IsaLevel::avx512) fill_avx512(table);
  return table;
}

const LeafTable& leaf_table(IsaLevel level) {
  static const LeafTable ref = build(IsaLevel::ref);
  static const LeafTable avx2 = build(IsaLevel::avx2);
  static const LeafTable avx512 = build(IsaLevel::avx512);
  CHECK(level <= best_isa_level());
  switch (level) {
    case IsaLevel::ref: return ref;
    case IsaLevel::avx2: return avx2;
    case IsaLevel::avx512: break;
  }
  return avx512;
}

}  // namespace stoker
