// Starts the matrix-vector kernel of matvec.h.
#pragma once

#include "kernels/cuda/matvec.h"

struct CUstream_st;

namespace stoker::cuda {

struct MatvecShape {
  int tokens;      // largest of the jobs'; 1 has a kernel of its own
  int processors;  // of the card
};

using MatvecLaunch = void (*)(const MatvecArgs&, const MatvecShape&, CUstream_st* stream);

// nullptr for formats without blocks. Errors of a launch are CUDA's, found by whoever asks the stream.
MatvecLaunch matvec_launch(BlockType type);

// Parts of it, one per file.
MatvecLaunch matvec_launch_block32(BlockType type);
MatvecLaunch matvec_launch_k(BlockType type);
MatvecLaunch matvec_launch_iq(BlockType type);

}  // namespace stoker::cuda
