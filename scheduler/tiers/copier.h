// Copier: asynchronous copies of experts between a slot in RAM and a place in a device's memory. Implementations: the
// runtime's, over a device's copy streams, and the simulator's.
//
// Owner: one thread (the engine's) submits, polls and waits.
#pragma once

#include <array>
#include <span>
#include <string>

#include "kernels/base/ids.h"
#include "kernels/base/types.h"

namespace stoker {

enum class CopyDirection : u8 { upload, download };  // RAM -> device, device -> RAM
constexpr i64 kCopyDirections = 2;

// One of an expert's matrices: gate, up, down.
struct CopyPart {
  std::byte* host = nullptr;  // any even address
  i64 at_device = 0;          // from the beginning of the device's arena for experts; a multiple of kVramAlignment
  i64 bytes = 0;
};

// One expert, one way. A copier may permute blocks within a matrix on the way up; on the way down it must put them back,
// so that what a slot in RAM holds is always what the file has.
struct Copy {
  u64 tag = 0;
  i32 device = 0;
  CopyDirection direction = CopyDirection::upload;
  LayerId layer;  // tells the formats and, in messages, what failed
  ExpertId expert;
  std::array<CopyPart, 3> parts;

  i64 bytes() const { return parts[0].bytes + parts[1].bytes + parts[2].bytes; }
};

enum class CopyError : u8 {
  none,
  failed,       // this copy; what it was to write is undefined, what it has read is as it was
  device_lost,  // the device and all that was in its memory; every other copy to or from it ends like this too
};

struct CopyDone {
  u64 tag = 0;
  CopyError error = CopyError::none;
};

class Copier {
 public:
  virtual ~Copier() = default;

  virtual i64 devices() const = 0;
  // Bytes that the device's arena has: the plan must fit.
  virtual i64 arena_bytes(i64 device) const = 0;
  virtual i64 capacity() const = 0;  // copies that may be submitted and not yet polled

  // Takes as many copies as fit below capacity(), in order, and returns how many it took. Never blocks. The two
  // directions of a device go at the same time, copies of one direction in order. Of overlapping copies that are
  // submitted at the same time nothing is promised: the scheduler submits none.
  virtual i64 submit(std::span<const Copy> copies) = 0;
  // Copies that have ended since the last poll, in any order; returns how many were written to `done`. Every copy is
  // answered once, also when its device is lost; from then on neither side's memory is touched. Never blocks.
  virtual i64 poll(std::span<CopyDone> done) = 0;
  // Blocks until poll() has something to say or `timeout_ns` has passed. False on timeout.
  virtual bool wait(i64 timeout_ns) = 0;

  // Tells the copier about memory that experts will be in, to be locked into place: as Reader::add_memory, and with
  // remove_memory as there. Copies of other memory work too, slower. Any thread.
  virtual void add_memory(std::byte* data, i64 bytes) = 0;
  virtual void remove_memory(std::byte* data, i64 bytes) = 0;

  // One line on how copies are done.
  virtual std::string describe() const = 0;
};

}  // namespace stoker
