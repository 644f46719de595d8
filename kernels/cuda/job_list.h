// From the router's choice to jobs of the matrix-vector kernel, without the CPU: experts that have weights on the card
// according to a pointer table become jobs, the others are left to whoever has them. Caching an expert changes the
// table, never a launch.
#pragma once

#include "kernels/cuda/matvec.h"

namespace stoker::cuda {

struct ExpertPointers {
  const std::byte* gate;  // packed matrices; gate is nullptr when the expert is not here
  const std::byte* up;
  const std::byte* down;
};

struct JobListArgs {
  const ExpertPointers* table;  // [experts] of the layer
  const i32* ids;               // [tokens, top_k]: the router's
  i64 tokens, top_k, experts;   // tokens <= kMatvecTokens
  MatvecJob* gate_up;  // at most tokens * top_k jobs: x rows are tokens, y rows inner rows
  MatvecJob* down;     // x rows are inner rows, y rows token * top_k + rank
  i32* count;          // of jobs, the same for both
  i32* tokens_of;      // [tokens * top_k]: x rows of gate_up, job after job
  i32* ranks_of;       // [tokens * top_k]: y rows of down
};

// One block of any size; experts words of shared memory.
HOST_DEVICE i64 job_list_shared_bytes(i64 experts) { return 4 * experts; }

template <class Machine>
HOST_DEVICE void make_job_list(const Machine& m, const JobListArgs& a) {
  i32* users = m.template shared<i32>(0);
  const i64 chosen = a.tokens * a.top_k;
  for (i64 e = m.thread(); e < a.experts; e += m.threads()) {
    i32 count = 0;
    if (a.table[e].gate != nullptr)
      for (i64 i = 0; i < chosen; i++) count += a.ids[i] == e;
    users[e] = count;
  }
  m.sync();
  // A few hundred steps of one thread; the order of jobs is that of experts.
  if (m.thread() == 0) {
    i32 jobs = 0, rows = 0;
    for (i64 e = 0; e < a.experts; e++) {
      if (users[e] == 0) continue;
      const i32 first = rows;
      for (i64 i = 0; i < chosen; i++) {
        if (a.ids[i] != e) continue;
        a.tokens_of[rows] = static_cast<i32>(i / a.top_k);
        a.ranks_of[rows++] = static_cast<i32>(i);
      }
      const ExpertPointers& expert = a.table[e];
      a.gate_up[jobs] = {.first = expert.gate, .second = expert.up, .x_rows = a.tokens_of + first, .y_rows = nullptr,
                         .x_first = 0, .x_step = 1, .y_first = first, .tokens = users[e], .y_offset = 0};
      a.down[jobs] = {.first = expert.down, .second = nullptr, .x_rows = nullptr, .y_rows = a.ranks_of + first,
                      .x_first = first, .x_step = 1, .y_first = 0, .tokens = users[e], .y_offset = 0};
      jobs++;
    }
    *a.count = jobs;
  }
}

}  // namespace stoker::cuda
