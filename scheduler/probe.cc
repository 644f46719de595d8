#include "scheduler/probe.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "kernels/base/rng.h"

namespace stoker {

namespace {

// Requests read into a few places in turn, as experts do into slots. A tag is place << 32 | bytes.
class DiskLoad {
 public:
  DiskLoad(const DiskProbe& probe, Reader& reader, i64 alignment)
      : probe_(probe),
        reader_(reader),
        alignment_(alignment),
        request_bytes_(round_up(probe.request_bytes, alignment)),
        places_(probe.one_at_a_time ? 1 : std::max<i64>(2, div_up(2 * probe.depth * probe.piece_bytes, request_bytes_))),
        pieces_left_(static_cast<size_t>(places_)),
        memory_(places_ * request_bytes_, "disk measurement"),
        rng_(probe.seed) {
    if (!fault_in(memory_.data(), memory_.bytes())) fail("no memory for the measurement of {}", probe.path);
    for (i64 i = 0; i < places_; i++) {
      reader_.add_memory(place(i), request_bytes_);
      make_request(i);
    }
  }
  ~DiskLoad() {
    pending_.clear();
    while (in_flight_ > 0) step();
    for (i64 i = 0; i < places_; i++) reader_.remove_memory(place(i), request_bytes_);
  }

  // Submits what fits, waits, and takes results. Places that are complete get a new request while `more`
  // holds.
  void step(bool more = false) {
    i64 taken = reader_.submit(pending_);
    in_flight_ += taken;
    pending_.erase(pending_.begin(), pending_.begin() + taken);
    reader_.wait(1'000'000'000);
    ReadDone done[64];
    i64 n = reader_.poll(done);
    in_flight_ -= n;
    for (const ReadDone& d : std::span(done).first(static_cast<size_t>(n))) {
      if (d.error != 0) error_ = d.error;
      bytes_ += static_cast<i64>(d.tag & 0xffffffffu);
      size_t index = d.tag >> 32;
      if (--pieces_left_[index] == 0 && more) make_request(static_cast<i64>(index));
    }
  }

  i64 bytes() const { return bytes_; }  // that have landed
  i64 request_bytes() const { return request_bytes_; }
  i32 error() const { return error_; }

 private:
  std::byte* place(i64 index) { return memory_.data() + index * request_bytes_; }

  void make_request(i64 index) {
    i64 offset = rng_.below((reader_.file_bytes(0) - request_bytes_) / alignment_ + 1) * alignment_;
    for (i64 at = 0; at < request_bytes_; at += probe_.piece_bytes) {
      i64 bytes = std::min(probe_.piece_bytes, request_bytes_ - at);
      pending_.push_back({.tag = static_cast<u64>(index) << 32 | static_cast<u64>(bytes),
                          .offset = offset + at,
                          .bytes = bytes,
                          .to = place(index) + at});
      pieces_left_[static_cast<size_t>(index)]++;
    }
  }

  const DiskProbe& probe_;
  Reader& reader_;
  i64 alignment_, request_bytes_, places_;
  std::vector<i64> pieces_left_;  // [places]
  std::vector<ReadPiece> pending_;
  Buffer memory_;
  Rng rng_;
  i64 in_flight_ = 0, bytes_ = 0;
  i32 error_ = 0;
};

}  // namespace

DiskMeasure measure_disk(const DiskProbe& probe) {
  auto reader = open_reader({probe.path},
                            {.path = probe.io, .depth = probe.depth, .max_piece_bytes = probe.piece_bytes});
  i64 alignment = std::max<i64>(4096, reader->alignment(0));
  if (probe.piece_bytes < alignment || probe.piece_bytes % alignment != 0)
    fail("pieces of {} bytes cannot be read from {}: use a multiple of {}", probe.piece_bytes, probe.path,
         alignment);
  if (probe.request_bytes < 1 || probe.request_bytes > kGiB)
    fail("a request has 1 byte to 1 GiB, not {} bytes", probe.request_bytes);
  if (reader->file_bytes(0) < round_up(probe.request_bytes, alignment))
    fail("{} is smaller than one request of {} bytes", probe.path, probe.request_bytes);
  DiskLoad load(probe, *reader, alignment);
  DiskMeasure measure;
  auto step = [&] {
    load.step(true);
    if (load.error() != 0) fail("cannot read {}: {}", probe.path, std::strerror(load.error()));
  };
  // Time counts from when the first reads have come round: until then the drive works and nothing lands.
  i64 coming = probe.one_at_a_time ? 0 : probe.depth * probe.piece_bytes;
  while (load.bytes() < coming) step();
  i64 before = load.bytes();
  i64 begin = steady_clock().now_ns(), now = begin;
  while (now - begin < static_cast<i64>(probe.seconds * 1e9)) {
    step();
    now = steady_clock().now_ns();
  }
  measure.seconds = static_cast<f64>(now - begin) * 1e-9;
  measure.bytes = load.bytes() - before;
  measure.request_bytes = load.request_bytes();
  measure.how = reader->describe();
  return measure;
}

}  // namespace stoker
