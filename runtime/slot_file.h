// SlotFile: what a sequence holds, its tokens and its KV cache, in a file. Little-endian:
//
//   8 bytes "STKRSLOT", u32 version, u32 type of the cache's numbers, u64 model (slot_model_id), i64 layers, i64 bytes of a row,
//   i64 tokens; then the tokens, i32 each; then layer by layer the rows of all positions; then u64 XXH3 of all before
//
// A file gets its name when all of it is on the disk. Any thread; nobody else may use the cache meanwhile.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

class Engine;
class KvCache;

// What tells models apart: the header's numbers, and names, shapes and the first bytes of all weights but routed experts
// (so a pack has its original's); and the options that change its maths. Reads some MB. Throws Error.
u64 slot_model_id(const Engine& engine);

struct SlotFileInfo {
  std::vector<i32> tokens;
  i64 bytes = 0;
};

// Returns the file's size. Throws Error.
i64 save_slot(const std::string& path, u64 model_id, i64 layers, std::span<const i32> tokens, const KvCache& cache);

// Fills the cache and sets its length. Throws Error for a file that is damaged, of another model or kind, or longer than
// the cache; it is empty then, or untouched when the beginning of the file already shows that.
SlotFileInfo restore_slot(const std::string& path, u64 model_id, i64 layers, i64 vocab, KvCache& cache);

}  // namespace stoker
