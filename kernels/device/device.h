// Device: a processor with memory of its own, reached over a link. CUDA cards, and host devices (host_device.h), which
// behave like cards but are made of CPU memory and threads, so that everything that uses devices can be tested without
// one. Users cannot tell them apart: what computes on a device is its table of ops (device_ops()
// of kernels/ops.h).
//
// Work is posted to streams and runs later, in order within a stream. Memory that was given to a posted operation, on
// either side, must stay as it is until an event recorded behind the operation is done.
//
// Failures. A posted operation that fails breaks its stream: what comes behind it is skipped, and every event recorded
// behind it is done with that failure. A lost device breaks all its streams. Nothing is repaired: the owner drops what
// it had on the device and goes on without. Posting to a broken stream is allowed and reports the failure.
//
// Threads: one thread, the owner, makes and posts; events may be asked by any one thread at a time.
#pragma once

#include <memory>
#include <string>

#include "kernels/base/error.h"
#include "kernels/base/types.h"

namespace stoker {

// An address in a device's memory. The CPU cannot follow it.
struct DevicePtr {
  u64 address = 0;

  explicit operator bool() const { return address != 0; }
  bool operator==(const DevicePtr&) const = default;
  DevicePtr operator+(i64 bytes) const { return {address + static_cast<u64>(bytes)}; }
  // As the arguments of ops have it (ops.h): an address all the same, valid on its device only.
  template <class T>
  T* as() const { return reinterpret_cast<T*>(address); }
};

struct DeviceProperties {
  std::string id;    // "cuda:0", "host:1"; what messages call it
  std::string name;  // "NVIDIA GeForce RTX 3090"
  i64 total_bytes = 0;
  i64 free_bytes = 0;  // now
  int compute_major = 0, compute_minor = 0;  // CUDA's compute capability; 0 for host devices
  bool packed = false;  // what computes here wants matrices in the packed order (kernels/ops.h)
};

// A point in a stream. It can be recorded again; the last record counts. It outlives what was posted with it.
class DeviceEvent {
 public:
  virtual ~DeviceEvent() = default;

  // Whether everything before the last record() has ended, in good or bad. True when it was never recorded.
  virtual bool done() = 0;
  // Blocks until done(), and says how it went.
  virtual Status wait() = 0;
};

// Destroyed before its device; waits for what was posted.
class DeviceStream {
 public:
  virtual ~DeviceStream() = default;

  // Host memory should be pinned (Device::pin_host): other memory works, slower. A copy that begins in a pinned range
  // and goes beyond its end fails.
  virtual Status copy_to_device(DevicePtr to, const void* from, i64 bytes) = 0;
  virtual Status copy_to_host(void* to, DevicePtr from, i64 bytes) = 0;
  virtual Status copy_within(DevicePtr to, DevicePtr from, i64 bytes) = 0;

  virtual Status record(DeviceEvent& event) = 0;
  // What is posted from now on begins after the event's last record(), possibly one of another device of the same kind.
  virtual Status wait(DeviceEvent& event) = 0;
  // Blocks until all that was posted has ended, and says how it went.
  virtual Status synchronize() = 0;

  // Without blocking: whether something that was posted is still to run. Nothing is behind a failure, which synchronize() tells.
  virtual bool busy() = 0;

  // In a timeline, what is posted from now on is called so: static text, "attention". A card's span of that begins here and
  // ends with the next label() or record().
  virtual void label(const char* what) = 0;

  // What kernels/cuda launches on: a CudaStreamOfCard (cuda_device.h). None for host devices.
  virtual const void* native() const { return nullptr; }
};

enum class DeviceKind { host, cuda };

class Timeline;

class Device {
 public:
  virtual ~Device() = default;

  // Before the first stream is made: what computes and copies is recorded from now on, in lanes "ID", "ID up" and
  // "ID down"; of a card, what a stream was labelled for, the copies of its rows included, in the first. The timeline must
  // outlive the device.
  virtual void record(Timeline& timeline) = 0;

  virtual DeviceKind kind() const = 0;
  virtual DeviceProperties properties() const = 0;
  // Failure: the device is lost.
  virtual Status status() const = 0;

  // Memory at a multiple of 256 bytes, of undefined contents. `what` is for the message.
  virtual Status allocate(i64 bytes, const char* what, DevicePtr& memory) = 0;
  // Of allocate(); no posted operation may still use it. Nothing happens to an empty pointer.
  virtual void free(DevicePtr memory) = 0;

  // Throw Error when the device has none left.
  virtual std::unique_ptr<DeviceStream> make_stream() = 0;
  virtual std::unique_ptr<DeviceEvent> make_event() = 0;

  // Locks a range of host memory into place, so that copies run at the link's speed: whole pages, at most 1 GiB, of a
  // range that is not pinned yet. `mapped`: the device can also read and write it in place, at mapped_address(). Any
  // thread. Failure (the user's limit on locked memory): the range works as before, unpinned.
  virtual Status pin_host(void* begin, i64 bytes, bool mapped) = 0;
  // With the same `begin`, before the memory is unmapped; no copy may be under way. Any thread.
  virtual void unpin_host(void* begin) = 0;
  // Where the device sees this address of a pinned and mapped range.
  virtual DevicePtr mapped_address(const void* host) const = 0;

  // Whether copies from `other` go over a link between the two, without the host's memory.
  virtual bool has_peer_access(const Device& other) const = 0;
  // Posts to `stream`, one of this device, a copy from the memory of another device of the same kind.
  virtual Status copy_from_peer(DeviceStream& stream, DevicePtr to, Device& other, DevicePtr from, i64 bytes) = 0;
};

}  // namespace stoker
