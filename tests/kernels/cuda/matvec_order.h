// What the matrix-vector kernel must give: the twin's sums of blocks, added in the kernel's order.
#pragma once

#include "kernels/cpu/leaf.h"

namespace stoker::test {

// Row `row` of weights times `x`, both in the CPU's order; cols and format of `tile`.
f32 in_kernel_order(const MatmulTile& tile, BlockType type, const std::byte* row, const std::byte* x);

}  // namespace stoker::test
