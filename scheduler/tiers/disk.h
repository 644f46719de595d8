// Disk: the Reader on io_uring, and the only file of stoker that knows io_uring.
//
// One thread owns the ring: SINGLE_ISSUER and DEFER_TASKRUN let only the thread that submits reap
// completions, and that must not be the engine's, which computes for milliseconds at a time. The thread
// sleeps in the kernel until a read completes or the owner writes to its eventfd.
//
// Memory given to add_memory is registered with the kernel (pinned once instead of page by page for every
// read). That counts against the locked-memory limit, 8 MiB for ordinary users of most systems: when the
// limit is reached, the rest is read unregistered, and one line of the log says how to raise the limit.
#pragma once

#include <memory>
#include <vector>

#include "scheduler/tiers/direct_file.h"
#include "scheduler/tiers/reader.h"

namespace stoker {

class Disk final : public Reader {
 public:
  struct Options {
    i64 depth = 64;
    i64 capacity = 1024;
    i64 max_piece_bytes = kMiB;
  };
  // Why io_uring cannot be used here: 0 when it can, else an errno (EPERM: a container's filter or the sysctl
  // kernel.io_uring_disabled; ENOSYS: the kernel has none).
  static i32 unavailable();

  // Throws Error when io_uring cannot be used.
  Disk(std::vector<DirectFile> files, Options options);
  ~Disk() override;  // reads that have begun are finished, the others dropped

  i64 alignment(i32 file) const override;
  i64 file_bytes(i32 file) const override;
  std::string file_name(i32 file) const override;
  i64 depth() const override;
  i64 capacity() const override;
  i64 max_piece_bytes() const override;
  i64 submit(std::span<const ReadPiece> pieces) override;
  void limit(ReadPriority priority, i64 pieces) override;
  i64 promote(ReadPriority from, u32 owner) override;
  void recall(ReadPriority from, u32 owner) override;
  i64 poll(std::span<ReadDone> done) override;
  bool wait(i64 timeout_ns) override;
  void add_memory(std::byte* data, i64 bytes) override;
  void remove_memory(std::byte* data, i64 bytes) override;
  std::string describe() const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace stoker
