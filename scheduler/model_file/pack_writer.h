// Writes packs (pack.h): everything of a model, experts in records, on one drive or several.
#pragma once

#include <string>
#include <vector>

#include "scheduler/model_file/expert_table.h"
#include "scheduler/model_file/gguf_writer.h"

namespace stoker {

class Gguf;

struct PackOptions {
  std::string output;                             // the main file
  std::vector<std::string> stripe_folders = {};   // of stripes 1, 2 ...
  bool replace = false;                           // files that exist already
};

struct PackResult {
  std::vector<std::string> paths;  // the main file first
  i64 experts = 0;
  i64 expert_bytes = 0;   // without padding
  i64 tensor_bytes = 0;   // of all other tensors
  i64 written_bytes = 0;  // of tensor data, padding included
};

// The new files get their names, the main one last, when all of them are complete and on disk; until then nothing
// is replaced. What `progress` throws stops the packing and leaves nothing behind. Throws Error: the model is a pack
// already, an output is one of its files or exists already, too little space, a read or write that fails.
PackResult write_pack(const Gguf& model, const ExpertTable& experts, const PackOptions& options,
                      const GgufWriter::Progress& progress = {});

}  // namespace stoker
