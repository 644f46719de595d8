// A small expert table whose slices lie at awkward offsets in two files (or in aligned pieces), for tests of the scheduler.
#pragma once

#include "kernels/base/rng.h"
#include "scheduler/model_file/expert_table.h"

namespace stoker::test {

struct SmallModel {
  i64 layers = 4;
  i64 first_layer = 1;
  i64 experts = 12;
  i64 top_k = 3;
  i64 sizes = 2;  // layers take turns between so many sizes of expert
  bool packed = false;  // the matrices of an expert in one piece, experts by turns in both files, with the checksums
                        // of pattern files (pattern_file.h) seeded with the file's number
  u64 seed = 1;
};

ExpertTable small_table(const SmallModel& model);

}  // namespace stoker::test
