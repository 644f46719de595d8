// Rows to memory of the host's and a word behind them (HandOverArgs), by one block: writes cross the link as they are made, and
// nothing is faster for a few rows.
#pragma once

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/rows.h"
#include "kernels/ops.h"

namespace stoker::cuda {

struct alignas(16) Sixteen {
  u32 word[4];
};

// By all threads of a block, each kAtATime units together, so that it waits for as many at once.
template <class Unit, class Machine>
HOST_DEVICE void copy_units(const Machine& m, const std::byte* from, std::byte* to, i64 count) {
  constexpr int kAtATime = 4;
  const Unit* source = reinterpret_cast<const Unit*>(from);
  Unit* target = reinterpret_cast<Unit*>(to);
  for (i64 first = m.thread(); first < count; first += kAtATime * m.threads()) {
    Unit units[kAtATime];
    UNROLL
    for (int k = 0; k < kAtATime; k++)
      if (first + k * m.threads() < count) units[k] = source[first + k * m.threads()];
    UNROLL
    for (int k = 0; k < kAtATime; k++)
      if (first + k * m.threads() < count) target[first + k * m.threads()] = units[k];
  }
}

// One block.
template <class Machine>
HOST_DEVICE void hand_over(const Machine& m, const HandOverArgs& a) {
  for (i64 i = 0; i < a.count; i++) {
    const std::byte* from = static_cast<const std::byte*>(a.pieces[i].from);
    std::byte* to = static_cast<std::byte*>(a.pieces[i].to);
    const bool aligned = ((reinterpret_cast<u64>(from) | reinterpret_cast<u64>(to)) & 15) == 0;
    const i64 units = aligned ? a.pieces[i].bytes / 16 : 0;
    copy_units<Sixteen>(m, from, to, units);
    copy_units<u8>(m, from + 16 * units, to + 16 * units, a.pieces[i].bytes - 16 * units);
  }
  m.fence_host();
  m.sync();
  if (m.thread() != 0) return;
  m.fence_host();
  m.publish(a.flag, a.value);
}

}  // namespace stoker::cuda
