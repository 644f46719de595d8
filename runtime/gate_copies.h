// GateCopies: the routers of all layers in 8 bits, for guesses: a quarter of the bytes, and integer products. What a layer
// itself chooses is computed with the router as the file has it.
// Owner: the engine thread.
#pragma once

#include <vector>

#include "kernels/base/buffer.h"
#include "runtime/hparams.h"
#include "runtime/weights.h"

namespace stoker {

class GateCopies {
 public:
  // `weights` must outlive it: where rows are no multiple of 32 the copy is the router itself.
  GateCopies(const Ops& ops, Stream& stream, const Hparams& hparams, const Weights& weights);

  static i64 bytes_needed(const Hparams& hparams);
  i64 bytes() const { return memory_.bytes(); }
  const Matrix& router(LayerId layer) const { return routers_[static_cast<size_t>(layer.value)]; }  // [experts, hidden]

 private:
  Buffer memory_;
  std::vector<Matrix> routers_;  // [layers]; no rows in a dense one
};

}  // namespace stoker
