#include "scheduler/streamer.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "kernels/base/check.h"
#include "scheduler/tiers/slice.h"

namespace stoker {

namespace {

constexpr i64 kBatch = 64;
// How long the drive may be kept from a demand by what is held back; and for how long the engine computes, at most, between
// two calls of pump(): what is handed out lasts for about that long. V3's dense FFN takes 17 ms on two cores.
constexpr i64 kPredictedDelayNs = 2'000'000, kSpareDelayNs = 500'000;
constexpr i64 kWindowNs = 20'000'000;

// A tag names the slot, the range and the piece's place in the range, in units of the alignment (at least
// 512).
u64 make_tag(SlotId slot, i64 range, i64 unit) {
  return static_cast<u64>(slot.value) << 32 | static_cast<u64>(range) << 30 | static_cast<u64>(unit);
}
i32 tag_slot(u64 tag) { return static_cast<i32>(tag >> 32); }
i32 tag_range(u64 tag) { return static_cast<i32>(tag >> 30 & 3); }
i64 tag_unit(u64 tag) { return static_cast<i64>(tag & ((u64{1} << 30) - 1)); }

}  // namespace

Streamer::Streamer(const ExpertTable& table, const Plan& plan, Reader& reader, const Clock& clock, i64 slots)
    : table_(table),
      plan_(plan),
      reader_(reader),
      clock_(clock),
      piece_bytes_(round_down(std::min(plan.piece_bytes, reader.max_piece_bytes()), plan.alignment)),
      transfers_(static_cast<size_t>(slots)),
      batch_(static_cast<size_t>(kBatch)),
      results_(static_cast<size_t>(kBatch)) {
  bool checksums = std::any_of(table.layers().begin(), table.layers().end(),
                               [](const ExpertLayer& layer) { return !layer.checksums.empty(); });
  if (checksums) {
    checks_ = std::make_unique<ReadCheck[]>(static_cast<size_t>(slots));
    proven_.resize(static_cast<size_t>(table.moe_layers() * table.experts_per_layer()));
  }
  ended_.reserve(static_cast<size_t>(slots));
  for (size_t file = 0; file < table.file_bytes().size(); file++) {
    i64 needed = reader.alignment(static_cast<i32>(file));
    if (plan.alignment % needed != 0)
      fail("{} must be read at multiples of {} bytes, the plan has {}",
           reader.file_name(static_cast<i32>(file)), needed, plan.alignment);
  }
  CHECK(piece_bytes_ > 0);
}

void Streamer::start(const Fetch& fetch) {
  Transfer& t = transfers_[static_cast<size_t>(fetch.slot.value)];
  CHECK(!t.fetch.slot.valid());  // one fetch per slot
  t = {};
  t.fetch = fetch;
  ExpertReads reads = expert_reads(table_, fetch.layer, fetch.expert, plan_.alignment);
  t.ranges = reads.count;
  t.checked = needs_check(fetch);
  if (t.checked) prepare_check(fetch, reads);
  push(queue_of(t), fetch.slot.value);
  under_way_++;
}

size_t Streamer::index_of(const Fetch& fetch) const {
  return static_cast<size_t>(table_.moe_index(fetch.layer) * table_.experts_per_layer() + fetch.expert.value);
}

bool Streamer::needs_check(const Fetch& fetch) const {
  return table_.checksum(fetch.layer, fetch.expert) != nullptr && !proven_[index_of(fetch)];
}

void Streamer::prepare_check(const Fetch& fetch, const ExpertReads& reads) {
  CHECK(reads.count == 1);  // checksums are of experts in one piece
  ReadCheck& check = checks_[static_cast<size_t>(fetch.slot.value)];
  check.pieces_left.store(div_up(reads.ranges[0].bytes, piece_bytes_));
  check.data = fetch.to + reads.at_slot(ExpertMatrix::gate);
  check.bytes = table_.expert_bytes(fetch.layer);
  check.expected = *table_.checksum(fetch.layer, fetch.expert);
}

bool Streamer::cancel(SlotId slot) {
  Transfer& t = transfers_[static_cast<size_t>(slot.value)];
  CHECK(t.fetch.slot == slot);
  if (t.submitted) return false;
  remove(queue_of(t), slot.value);
  t.fetch.slot = {};
  under_way_--;
  return true;
}

void Streamer::abandon(SlotId slot) {
  Transfer& t = transfers_[static_cast<size_t>(slot.value)];
  CHECK(t.fetch.slot == slot);
  bool queued = !exhausted(t);
  reader_.recall(t.fetch.priority, owner_of(make_tag(slot, 0, 0)));
  if (!queued) return;
  remove(queue_of(t), slot.value);
  t.error = kRecalled;
  end_if_complete(slot.value);
}

bool Streamer::upgrade(SlotId slot) {
  Transfer& t = transfers_[static_cast<size_t>(slot.value)];
  CHECK(t.fetch.slot == slot);
  if (t.fetch.priority == ReadPriority::demand) return t.submitted;
  bool queued = !exhausted(t);
  if (queued) remove(queue_of(t), slot.value);
  ReadPriority before = std::exchange(t.fetch.priority, ReadPriority::demand);
  if (queued) push(queue_of(t), slot.value);
  i64 promoted = reader_.promote(before, owner_of(make_tag(slot, 0, 0)));
  in_flight_[static_cast<size_t>(before)] -= promoted;
  in_flight_[static_cast<size_t>(ReadPriority::demand)] += promoted;
  return t.submitted;
}

void Streamer::pump() {
  take_results();
  hand_out();
}

bool Streamer::next(FetchDone& done) {
  if (ended_head_ == ended_.size()) return false;
  Transfer& t = transfers_[static_cast<size_t>(ended_[ended_head_++])];
  if (ended_head_ == ended_.size()) {
    ended_.clear();
    ended_head_ = 0;
  }
  done = {t.fetch.layer, t.fetch.expert, t.fetch.slot, status_of(t), t.bytes_read};
  if (t.checked && t.error == 0) proven_[index_of(t.fetch)] = true;
  t.fetch.slot = {};
  under_way_--;
  return true;
}

bool Streamer::wait(i64 timeout_ns) { return pieces_in_flight_ > 0 && reader_.wait(timeout_ns); }

void Streamer::push(Queue& queue, i32 index) {
  Transfer& t = transfers_[static_cast<size_t>(index)];
  t.previous = queue.last;
  t.next = kNone;
  if (queue.last != kNone)
    transfers_[static_cast<size_t>(queue.last)].next = index;
  else
    queue.first = index;
  queue.last = index;
}

void Streamer::remove(Queue& queue, i32 index) {
  const Transfer& t = transfers_[static_cast<size_t>(index)];
  if (t.previous != kNone)
    transfers_[static_cast<size_t>(t.previous)].next = t.next;
  else
    queue.first = t.next;
  if (t.next != kNone)
    transfers_[static_cast<size_t>(t.next)].previous = t.previous;
  else
    queue.last = t.previous;
}

void Streamer::take_results() {
  i64 last_ns = 0;
  while (pieces_in_flight_ > 0) {
    i64 n = reader_.poll(results_);
    if (n == 0) return;
    for (const ReadDone& done : std::span(results_).first(static_cast<size_t>(n))) {
      Transfer& t = transfers_[static_cast<size_t>(tag_slot(done.tag))];
      t.in_flight--;
      in_flight_[static_cast<size_t>(done.priority)]--;
      last_ns = std::max(last_ns, done.finished_ns);
      if (done.error == kRecalled) take_back(t, done.tag);
      if (done.error != 0 && t.error == 0) {
        bool queued = !exhausted(t);
        t.error = done.error;
        t.error_range = tag_range(done.tag);
        t.error_offset = tag_unit(done.tag) * plan_.alignment;
        if (queued) remove(queue_of(t), t.fetch.slot.value);  // the rest of it is of no use
      }
      end_if_complete(t.fetch.slot.value);
    }
    pieces_in_flight_ -= n;
    // The drive was busy until the last of these landed, which may be long before anybody looked.
    busy_ns_ += std::max<i64>(0, last_ns - busy_since_ns_);
    busy_since_ns_ = std::max(last_ns, busy_since_ns_);
    bool was_busy = busy_since_ns_ > busy_from_ns_;  // not when all was recalled
    if (pieces_in_flight_ == 0 && was_busy && timeline_ != nullptr) timeline_->add({busy_from_ns_, busy_since_ns_, "read", lane_});
    measure_bandwidth();
  }
}

// Bytes that were asked for are not read.
void Streamer::take_back(Transfer& t, u64 tag) {
  ExpertReads reads = expert_reads(table_, t.fetch.layer, t.fetch.expert, plan_.alignment);
  i64 left = reads.ranges[static_cast<size_t>(tag_range(tag))].bytes - tag_unit(tag) * plan_.alignment;
  i64 bytes = std::min(piece_bytes_, left);
  t.bytes_read -= bytes;
  bytes_read_ -= bytes;
}

// What has landed took busy_ns_.
void Streamer::measure_bandwidth() {
  i64 landed = bytes_read_ - pieces_in_flight_ * piece_bytes_;
  if (busy_ns_ == 0 || landed <= 0) return;
  auto pieces_in = [&](i64 ns) {
    f64 bytes = static_cast<f64>(landed) / static_cast<f64>(busy_ns_) * static_cast<f64>(ns);
    return std::clamp<i64>(static_cast<i64>(bytes) / piece_bytes_, 1, std::max<i64>(1, reader_.capacity() / 2));
  };
  window_pieces_ = pieces_in(kWindowNs);
  limit(ReadPriority::predicted, pieces_in(kPredictedDelayNs));
  limit(ReadPriority::spare, pieces_in(kSpareDelayNs));
}

void Streamer::limit(ReadPriority priority, i64 depth) {
  if (depth != std::exchange(depths_[static_cast<size_t>(priority)], depth)) reader_.limit(priority, depth);
}

bool Streamer::may_submit(size_t priority) const {
  bool far = far_ && priority == static_cast<size_t>(ReadPriority::predicted);
  i64 limit = far ? std::max<i64>(1, reader_.capacity() / 2) : window_pieces_;
  return !is_held_back(static_cast<ReadPriority>(priority)) || in_flight_[priority] < limit;
}

void Streamer::hand_out() {
  for (;;) {
    i64 room = std::min(kBatch, reader_.capacity() - pieces_in_flight_);
    i64 n = 0;
    for (size_t p = 0; p < std::size(queues_); p++) {
      Queue& queue = queues_[p];
      while (n < room && queue.first != kNone && may_submit(p)) {
        i32 index = queue.first;
        in_flight_[p]++;
        if (!make_piece(index, batch_[static_cast<size_t>(n++)])) remove(queue, index);
      }
    }
    if (n == 0) return;
    if (pieces_in_flight_ == 0) busy_from_ns_ = busy_since_ns_ = clock_.now_ns();
    i64 taken = reader_.submit(std::span(batch_).first(static_cast<size_t>(n)));
    CHECK(taken == n);  // we stay below its capacity
    pieces_in_flight_ += n;
  }
}

// Writes the transfer's next piece. False when it was the last.
bool Streamer::make_piece(i32 index, ReadPiece& piece) {
  Transfer& t = transfers_[static_cast<size_t>(index)];
  ExpertReads reads = expert_reads(table_, t.fetch.layer, t.fetch.expert, plan_.alignment);
  const ExpertReads::Range& range = reads.ranges[static_cast<size_t>(t.range)];
  i64 bytes = std::min(piece_bytes_, range.bytes - t.offset);
  piece = {.tag = make_tag(t.fetch.slot, t.range, t.offset / plan_.alignment),
           .file = range.file,
           .priority = t.fetch.priority,
           .offset = range.offset + t.offset,
           .bytes = bytes,
           .to = t.fetch.to + range.at_slot + t.offset,
           .check = t.checked ? &checks_[static_cast<size_t>(index)] : nullptr};
  t.offset += bytes;
  if (t.offset == range.bytes) {
    t.offset = 0;
    t.range++;
  }
  t.in_flight++;
  t.submitted = true;
  t.bytes_read += bytes;
  bytes_read_ += bytes;
  return t.range < t.ranges;
}

void Streamer::end_if_complete(i32 index) {
  const Transfer& t = transfers_[static_cast<size_t>(index)];
  if (t.in_flight == 0 && exhausted(t)) ended_.push_back(index);
}

Status Streamer::status_of(const Transfer& t) const {
  if (t.error == 0) return {};
  if (t.error == kRecalled) return Status::failure("not read: nobody wants it");
  ExpertReads reads = expert_reads(table_, t.fetch.layer, t.fetch.expert, plan_.alignment);
  const ExpertReads::Range& range = reads.ranges[static_cast<size_t>(t.error_range)];
  if (t.error == kChecksumMismatch)
    return Status::failure(fmt::format(
        "layer {}, expert {}: the data does not match its checksum ({}, {} bytes from offset {} on): the file is "
        "damaged; `stoker pack --verify` finds all such places",
        t.fetch.layer.value, t.fetch.expert.value, reader_.file_name(range.file),
        table_.expert_bytes(t.fetch.layer),
        table_.extent(t.fetch.layer, t.fetch.expert, ExpertMatrix::gate).offset));
  return Status::failure(fmt::format("cannot read expert {} in layer {} ({}, offset {}): {}",
                                     t.fetch.expert.value, t.fetch.layer.value, reader_.file_name(range.file),
                                     range.offset + t.error_offset, std::strerror(t.error)));
}

}  // namespace stoker
