// PreadReader: the Reader for machines where io_uring is refused (container filters, a sysctl, old kernels)
// or where the file system has no direct reads. A few threads, each with one blocking pread at a time.
#pragma once

#include <thread>
#include <vector>

#include "scheduler/tiers/direct_file.h"
#include "scheduler/tiers/read_queue.h"
#include "scheduler/tiers/reader.h"

namespace stoker {

class PreadReader final : public Reader {
 public:
  struct Options {
    i64 depth = 16;  // threads
    i64 capacity = 1024;
    i64 max_piece_bytes = kMiB;
  };
  PreadReader(std::vector<DirectFile> files, Options options);
  ~PreadReader() override;  // reads that have begun are finished, the others dropped

  i64 alignment(i32 file) const override;
  i64 file_bytes(i32 file) const override;
  std::string file_name(i32 file) const override;
  i64 depth() const override { return options_.depth; }
  i64 capacity() const override { return options_.capacity; }
  i64 max_piece_bytes() const override { return options_.max_piece_bytes; }
  i64 submit(std::span<const ReadPiece> pieces) override { return queue_.submit(pieces); }
  void limit(ReadPriority priority, i64 pieces) override { queue_.limit(priority, pieces); }
  i64 promote(ReadPriority from, u32 owner) override { return queue_.promote(from, owner); }
  void recall(ReadPriority from, u32 owner) override { queue_.recall(from, owner); }
  i64 poll(std::span<ReadDone> done) override { return queue_.poll(done); }
  bool wait(i64 timeout_ns) override { return queue_.wait(timeout_ns); }
  void add_memory(std::byte*, i64) override {}
  void remove_memory(std::byte*, i64) override {}
  std::string describe() const override;

 private:
  void serve();

  const std::vector<DirectFile> files_;
  const Options options_;
  ReadQueue queue_;
  std::vector<std::thread> threads_;
};

}  // namespace stoker
