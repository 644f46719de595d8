#include "runtime/gate_copies.h"

#include "kernels/format/block_type.h"

namespace stoker {

namespace {

constexpr BlockType kType = BlockType::Q8_0;

i64 copy_bytes(const Hparams& h) { return h.hidden % 32 == 0 ? h.experts * row_bytes(kType, h.hidden) : 0; }

}  // namespace

i64 GateCopies::bytes_needed(const Hparams& h) { return h.moe_layers() * copy_bytes(h); }

GateCopies::GateCopies(const Ops& ops, Stream& stream, const Hparams& h, const Weights& weights)
    : memory_(bytes_needed(h), "8-bit copies of the routers") {
  std::byte* to = memory_.data();
  for (const LayerWeights& w : weights.layers()) {
    routers_.push_back(w.router);
    if (!w.is_moe() || copy_bytes(h) == 0) continue;
    // The op that writes rows of a cache makes the blocks that weights have.
    ops.store_latents(stream, {.x = static_cast<const f32*>(w.router.data), .type = CacheType::Q8_0, .out = to,
                               .rows = h.experts, .cols = h.hidden});
    routers_.back() = {to, kType, h.experts, h.hidden};
    to += copy_bytes(h);
  }
}

}  // namespace stoker
