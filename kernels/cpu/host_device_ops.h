// The ops of host devices: the CPU's, posted to a stream and run in its thread, by the kernels of the stream's level. So
// what a host device computes has the bits that the CPU would have computed. Those that keep matrices in a card's order put
// each one back first: the kernels' sums, and so their bits, are of the file's order.
#pragma once

#include "kernels/ops.h"

namespace stoker {

// quantize, expert_ffn, route, and the ops around attention.
const Ops& host_device_ops();
// These, pack and unpack.
const Ops& packed_host_device_ops();

}  // namespace stoker
