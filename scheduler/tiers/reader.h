// Reader: asynchronous reads of file ranges into memory. Implementations: Disk (io_uring), PreadReader
// (threads) and the simulator's. open_reader() in open_reader.h picks one.
//
// Owner: one thread (the engine's) submits, polls and waits. Between the owner and the drive stands a queue
// of capacity() pieces, of which depth() are with the kernel: the drive stays busy while the owner computes.
#pragma once

#include <atomic>
#include <span>
#include <string>

#include "kernels/base/types.h"

namespace stoker {

// Reads that somebody waits for start before those that somebody will probably want soon, and these before the
// rest; last come those for slots that would be empty otherwise (spare).
enum class ReadPriority : u8 { demand, predicted, background, spare };
constexpr i64 kReadPriorities = 4;
// Which of them a demand that comes later should hardly wait for.
constexpr bool is_held_back(ReadPriority p) { return p == ReadPriority::predicted || p == ReadPriority::spare; }

// Compares data that lands in several pieces with its checksum. The pieces share it; whoever finishes the last
// one does the comparison, so that it costs the owner nothing. Must live until every piece has been polled.
struct ReadCheck {
  std::atomic<i64> pieces_left{0};  // not yet landed
  const std::byte* data = nullptr;
  i64 bytes = 0;
  u64 expected = 0;
};

// One piece: at most max_piece_bytes(). offset, bytes and `to` must be multiples of alignment(file).
// The range may reach past the end of the file by less than one alignment unit (slices are rounded outwards
// to it): what the file does not have stays as it was in memory.
struct ReadPiece {
  u64 tag = 0;  // the upper half says whose piece it is
  i32 file = 0;
  ReadPriority priority = ReadPriority::demand;
  i64 offset = 0;
  i64 bytes = 0;
  std::byte* to = nullptr;
  ReadCheck* check = nullptr;  // or none
};

constexpr u32 owner_of(u64 tag) { return static_cast<u32>(tag >> 32); }

constexpr i32 kChecksumMismatch = -1, kRecalled = -2;

struct ReadDone {
  u64 tag = 0;
  // 0; an errno, EIO for a file that ends earlier than it did when it was opened; or, for the last piece of a
  // check, kChecksumMismatch; kRecalled: it was not read.
  i32 error = 0;
  i64 finished_ns = 0;  // when the last byte landed, on the clock that the owner uses too
  ReadPriority priority = ReadPriority::demand;  // the piece's
};

// For readers: whether the piece that has just landed, with `error`, was the last its check waits for. Each
// piece must be asked about once; after a failed one the answer is never yes.
bool completes(const ReadPiece& piece, i32 error);
// 0 or kChecksumMismatch.
i32 compare(const ReadCheck& check);

class Reader {
 public:
  virtual ~Reader() = default;

  virtual i64 alignment(i32 file) const = 0;  // a power of two; 1 when none is needed
  virtual i64 file_bytes(i32 file) const = 0;
  virtual std::string file_name(i32 file) const = 0;  // for messages
  virtual i64 depth() const = 0;                      // pieces that may be with the kernel at a time
  virtual i64 capacity() const = 0;                   // pieces that may be submitted and not yet polled
  virtual i64 max_piece_bytes() const = 0;

  // Takes as many pieces as fit below capacity(), in order, and returns how many it took. Never blocks.
  virtual i64 submit(std::span<const ReadPiece> pieces) = 0;
  // Most pieces of a priority that is held back that may be with the kernel at a time, where a demand that comes later
  // cannot overtake them; 1 until told. Readers that hold none back ignore it.
  virtual void limit(ReadPriority /*priority*/, i64 /*pieces*/) {}
  // Pieces of this owner and priority that are not with the kernel yet: they go with demand from now on, behind what is there.
  // How many. Never blocks.
  virtual i64 promote(ReadPriority from, u32 owner) = 0;
  // The same pieces are not read: poll() gives them back. Never blocks.
  virtual void recall(ReadPriority from, u32 owner) = 0;
  // Finished pieces since the last poll, in any order; returns how many were written to `done`. Never blocks.
  virtual i64 poll(std::span<ReadDone> done) = 0;
  // Blocks until poll() has something to say or `timeout_ns` has passed. False on timeout.
  virtual bool wait(i64 timeout_ns) = 0;

  // Tells the reader about memory that future reads land in, for registration with the kernel: at most 1 GiB
  // per call, anonymous, page-aligned. Reads into other memory work too, slower. Any thread, also while reads
  // are under way.
  virtual void add_memory(std::byte* data, i64 bytes) = 0;
  // Must be called, with the same arguments, before memory given to add_memory is unmapped; no read may be
  // under way into it. Blocks shortly. Any thread.
  virtual void remove_memory(std::byte* data, i64 bytes) = 0;

  // One line on how reads are done: "io_uring, O_DIRECT, registered buffers" ...
  virtual std::string describe() const = 0;
};

}  // namespace stoker
