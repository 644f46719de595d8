// Popularity as a file, 2 bytes per expert:
//
//   "STKPOPUL", u32 version, u32 moe layers, u32 experts, u32 0, u64 model, then per layer f32 tokens and
//   u16 shares [experts] in 1/65535, then u64 checksum (kernels/base/checksum.h) of all before
//
// All numbers little-endian. The model is told by trace_model_hash() of its name and router: quantisations of one model
// share their popularity.
#pragma once

#include <string>

#include "scheduler/policy/popularity.h"

namespace stoker {

// Throws Error, saying which: cannot be read, no such file, another version, damaged.
struct PopularityFile {
  u64 model = 0;
  Popularity popularity;
};
PopularityFile read_popularity(const std::string& path);

// For a model: throws Error as well when the file is another model's.
Popularity read_popularity(const std::string& path, u64 model, i64 moe_layers, i64 experts);

// Replaces what is there, all or nothing. Throws Error, also when that is neither a popularity file nor empty.
void write_popularity(const std::string& path, const PopularityFile& file);

}  // namespace stoker
