// ModelBytes: tensor data of a model's files, read front to back in large ranges: to pack a model, and to check a
// pack. Pages that have been read are dropped from the page cache, where a whole model would push out everything
// else. Owner: one thread.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

class Gguf;

class ModelBytes {
 public:
  // Throws Error when a file cannot be opened.
  explicit ModelBytes(const Gguf& gguf);
  ~ModelBytes();
  ModelBytes(const ModelBytes&) = delete;
  ModelBytes& operator=(const ModelBytes&) = delete;

  // Fills `out` from `offset` of file number `file` on. Throws Error.
  void read(i32 file, i64 offset, std::span<std::byte> out) const;

 private:
  std::vector<std::string> paths_;
  std::vector<int> fds_;
};

}  // namespace stoker
