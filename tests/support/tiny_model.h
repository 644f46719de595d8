// A tiny random model of the family, written in a moment: for tests that need some model.
#pragma once

#include <string>

#include "runtime/synth/synth_model.h"
#include "tests/support/temp_folder.h"

namespace stoker::test {

// Options for `stoker synth --shape tiny`, all matrices of one format.
SynthOptions tiny_options(BlockType type);

// A file in a folder of its own, which disappears with the object. The vocabulary is 512.
class TinyModel {
 public:
  explicit TinyModel(SynthOptions options = tiny_options(BlockType::Q4_K));
  const std::string& path() const { return path_; }
  const TempFolder& folder() const { return folder_; }

 private:
  TempFolder folder_;
  std::string path_;
};

}  // namespace stoker::test
