// SimMachine: the machine that is simulated, as speeds and sizes. Plain data; machine_file.h reads it.
// Speeds are what programs get, not what data sheets say; 1 GB/s is one byte per nanosecond.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "kernels/base/types.h"
#include "kernels/format/block_type.h"

namespace stoker {

struct SimGpu {
  std::string name;
  i64 vram_bytes = 0;
  f64 gb_per_second = 0;       // of its memory
  f64 link_gb_per_second = 0;  // to the CPU's memory, one direction; both at the same time
  f64 expert_gb_per_second = 0;  // of routed experts' weights, computing
  f64 attention_tflops = 0;      // over a KV cache; 0: not known, then it takes what reading the cache does
};

// What a drive gives with reads of one size and so many in flight.
struct SimSsdSpeed {
  i64 piece_bytes = 0, depth = 0;
  f64 gb_per_second = 0;
};

struct SimMachine {
  std::string name;
  i64 ram_bytes = 0;
  f64 dram_gb_per_second = 0;  // all cores reading; what the SSD delivers is written at their expense
  f64 ssd_gb_per_second = 0;   // of all drives together
  f64 ssd_latency_us = 0;      // from a request to its first byte, and whatever else its bytes do not explain
  f64 layer_overhead_us = 0;   // once per layer, what no weight explains: handing work over, norms, the choice of experts
  f64 wake_us = 0;             // the first product after a wait for the drive takes so much longer: cores fall asleep meanwhile
  f64 attention_gflops = 0;    // of the cores, over a KV cache; 0: not known, then it takes what reading the cache does
  // Most weights per second that the cores get through when memory does not hold them up, as GB/s of each format.
  std::array<f64, kBlockTypeLimit> kernel_gb_per_second{};
  // The same with weights out of memory, nothing else going on: cores wait for memory and memory for cores, so this is less
  // than either. 0: not known; then the slower of the two counts.
  std::array<f64, kBlockTypeLimit> streamed_gb_per_second{};
  std::vector<SimSsdSpeed> ssd_speeds;  // none: ssd_gb_per_second whatever the reads
  std::vector<SimGpu> gpus;

  f64 kernel_speed(BlockType type) const { return kernel_gb_per_second[static_cast<size_t>(type)]; }
  f64 streamed_speed(BlockType type) const { return streamed_gb_per_second[static_cast<size_t>(type)]; }
  // GB/s of weights of this format with the memory to themselves.
  f64 compute_speed(BlockType type) const {
    return streamed_speed(type) > 0 ? streamed_speed(type) : std::min(dram_gb_per_second, kernel_speed(type));
  }
  // With such reads; of those that were measured the one that is most like them.
  f64 ssd_speed(i64 piece_bytes, i64 depth) const;
  i64 vram_bytes() const {
    i64 bytes = 0;
    for (const SimGpu& gpu : gpus) bytes += gpu.vram_bytes;
    return bytes;
  }
};

}  // namespace stoker
