// OutputFile: a large file written front to back, which appears under its name only when it is complete.
// Large writes go to the disk directly where the file system allows it: copying them into the page cache
// takes longer than a good drive needs for them. Owner: one thread at a time.
#pragma once

#include <span>
#include <string>

#include "kernels/base/types.h"

namespace stoker {

class OutputFile {
 public:
  // Creates PATH.partial, replacing a leftover. Throws Error.
  explicit OutputFile(const std::string& path);
  // Removes the partial file unless commit() has been called.
  ~OutputFile();
  OutputFile(OutputFile&& other) noexcept;
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  i64 position() const { return position_; }
  // Throws Error; the text says how far it came when the disk is full. Fastest when `data` lies as far behind
  // a page in memory as position() does in the file, and is megabytes long.
  void write(std::span<const std::byte> data);
  void skip(i64 bytes) { position_ += bytes; }  // leaves a hole
  // Replaces the first bytes, which have been written.
  void overwrite_start(std::span<const std::byte> data);
  // Gives the file its length (a hole at the end included) and, unless it is small and need not be `durable`,
  // waits until the disk has it.
  void finish(bool durable);
  // Renames to the final name, replacing what is there; if durable, the folder's entry is on disk too.
  void commit();

  const std::string& path() const { return path_; }

 private:
  [[noreturn]] void failed(const char* doing) const;
  void write_through(std::span<const std::byte> data, bool direct);
  void drop_written_pages();

  std::string path_;
  std::string partial_;
  int fd_ = -1;
  int direct_fd_ = -1;  // the same file with O_DIRECT; -1: not possible there
  i64 position_ = 0;
  i64 flushed_ = 0;  // up to here the kernel was told to write pages out
  bool durable_ = false;
  i64 dropped_ = 0;  // up to here they were written and dropped from the page cache
};

// Bytes a user may still write to the file system that holds `path` (which need not exist); -1 when unknown.
i64 free_bytes_at(const std::string& path);

}  // namespace stoker
