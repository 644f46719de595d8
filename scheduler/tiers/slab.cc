#include "scheduler/tiers/slab.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "kernels/base/log.h"
#include "kernels/base/threads.h"

namespace stoker {

struct Slab::Impl {
  struct Class {
    std::byte* base = nullptr;
    i64 slot_bytes = 0;
    i64 first_slot = 0;
    i64 slots = 0;          // planned
    i64 usable = 0;         // collected
    std::vector<i32> free = {};  // slot ids; taken from the back
  };
  struct Piece {
    i64 slot_class;
    i64 first, count;  // slots, within the class
  };

  explicit Impl(SlabOptions o) : options(std::move(o)) {}
  ~Impl();
  void start(const Plan& plan);
  void lay_out(const Plan& plan);
  void cut_pieces();
  i64 grow_minimum();
  bool grow(const Piece& piece);
  void grow_rest(i64 first_piece);
  std::pair<std::byte*, i64> memory_of(const Piece& piece) const;
  void warn_short() const;

  SlabOptions options;
  Buffer arena;
  std::vector<Class> classes;
  std::vector<Piece> pieces;  // in the order in which they come into existence
  i64 planned = 0;

  mutable std::mutex mutex;
  mutable std::condition_variable grown_changed;
  i64 grown = 0;      // pieces that exist; guarded by mutex
  bool done = false;  // no more will come; guarded by mutex
  i64 collected = 0;  // pieces, of the owner
  i64 minimum_pieces = 0;  // the first ones
  std::atomic<bool> stop{false};
  std::thread thread;
};

void Slab::Impl::start(const Plan& plan) {
  if (!options.fault_in) options.fault_in = fault_in;
  lay_out(plan);
  cut_pieces();
  minimum_pieces = grow_minimum();
  if (options.background)
    thread = std::thread([this] {
      unpin_this_thread();
      grow_rest(minimum_pieces);
    });
  else
    grow_rest(minimum_pieces);
}

void Slab::Impl::lay_out(const Plan& plan) {
  arena = Buffer(plan.arena_bytes(), "expert slots");
  std::byte* at = arena.data();
  for (const SlotClass& c : plan.classes) {
    CHECK(c.slot_bytes > 0 && c.slot_bytes % plan.alignment == 0);
    classes.push_back({.base = at, .slot_bytes = c.slot_bytes, .first_slot = planned, .slots = c.slots});
    classes.back().free.reserve(static_cast<size_t>(c.slots));
    at += c.slots * c.slot_bytes;
    planned += c.slots;
  }
}

// Every class gets its minimum first; after that the classes grow side by side, at the pace of their sizes.
void Slab::Impl::cut_pieces() {
  std::vector<i64> cut(classes.size());
  auto add = [&](size_t c, i64 count) {
    pieces.push_back({static_cast<i64>(c), cut[c], count});
    cut[c] += count;
  };
  auto piece_slots = [&](size_t c, i64 limit) {
    i64 most = std::max<i64>(1, options.piece_bytes / classes[c].slot_bytes);
    return std::min({most, limit, classes[c].slots - cut[c]});
  };
  for (size_t c = 0; c < classes.size(); c++) {
    i64 minimum = std::min(options.minimum_slots, classes[c].slots);
    while (cut[c] < minimum) add(c, piece_slots(c, minimum - cut[c]));
  }
  for (;;) {
    size_t behind = classes.size();
    f64 least = 1.0;
    for (size_t c = 0; c < classes.size(); c++) {
      f64 share = static_cast<f64>(cut[c]) / static_cast<f64>(std::max<i64>(classes[c].slots, 1));
      if (cut[c] < classes[c].slots && share < least) {
        least = share;
        behind = c;
      }
    }
    if (behind == classes.size()) return;
    add(behind, piece_slots(behind, classes[behind].slots));
  }
}

// Returns the number of pieces made.
i64 Slab::Impl::grow_minimum() {
  i64 n = 0;
  for (const Piece& piece : pieces) {
    const Class& c = classes[static_cast<size_t>(piece.slot_class)];
    if (piece.first >= std::min(options.minimum_slots, c.slots)) break;
    if (!grow(piece))
      fail(
          "the machine has no memory for {} expert slots of {:.1f} MiB, the least that works; free some "
          "memory",
          options.minimum_slots, static_cast<f64>(c.slot_bytes) / kMiB);
    n++;
  }
  return n;
}

bool Slab::Impl::grow(const Piece& piece) {
  auto [data, bytes] = memory_of(piece);
  if (!options.fault_in(data, bytes)) return false;
  if (options.on_piece) options.on_piece(data, bytes);
  std::lock_guard lock(mutex);
  grown++;
  grown_changed.notify_all();
  return true;
}

void Slab::Impl::grow_rest(i64 first_piece) {
  for (size_t i = static_cast<size_t>(first_piece); i < pieces.size() && !stop.load(); i++) {
    if (grow(pieces[i])) continue;
    warn_short();
    break;
  }
  std::lock_guard lock(mutex);
  done = true;
  grown_changed.notify_all();
}

Slab::Impl::~Impl() {
  stop.store(true);
  if (thread.joinable()) thread.join();
  for (i64 i = 0; options.on_piece_gone && i < grown; i++) {
    auto [data, bytes] = memory_of(pieces[static_cast<size_t>(i)]);
    options.on_piece_gone(data, bytes);
  }
}

std::pair<std::byte*, i64> Slab::Impl::memory_of(const Piece& piece) const {
  const Class& c = classes[static_cast<size_t>(piece.slot_class)];
  return {c.base + piece.first * c.slot_bytes, piece.count * c.slot_bytes};
}

void Slab::Impl::warn_short() const {
  i64 slots = 0, bytes = 0;
  for (i64 i = 0; i < grown; i++) {
    const Piece& piece = pieces[static_cast<size_t>(i)];
    slots += piece.count;
    bytes += piece.count * classes[static_cast<size_t>(piece.slot_class)].slot_bytes;
  }
  log_warning(
      "the machine has run out of memory for experts: going on with {} of {} slots ({:.1f} of {:.1f} GiB)",
      slots, planned, static_cast<f64>(bytes) / kGiB, static_cast<f64>(arena.bytes()) / kGiB);
}

Slab::Slab(const Plan& plan, SlabOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {
  impl_->start(plan);
}
Slab::~Slab() = default;

SlotId Slab::take(i64 slot_class) {
  Impl::Class& c = impl_->classes[static_cast<size_t>(slot_class)];
  if (c.free.empty()) return {};
  SlotId slot(c.free.back());
  c.free.pop_back();
  return slot;
}

void Slab::give_back(SlotId slot) {
  impl_->classes[static_cast<size_t>(slot_class(slot))].free.push_back(slot.value);
}

i64 Slab::planned_slots() const { return impl_->planned; }

i64 Slab::slot_class(SlotId slot) const {
  size_t c = impl_->classes.size() - 1;
  while (impl_->classes[c].first_slot > slot.value) c--;
  return static_cast<i64>(c);
}

std::byte* Slab::data(SlotId slot) const {
  const Impl::Class& c = impl_->classes[static_cast<size_t>(slot_class(slot))];
  return c.base + (slot.value - c.first_slot) * c.slot_bytes;
}

bool Slab::collect() {
  Impl& s = *impl_;
  i64 grown;
  {
    std::lock_guard lock(s.mutex);
    grown = s.grown;
  }
  bool any = s.collected < grown;
  for (; s.collected < grown; s.collected++) {
    const Impl::Piece& piece = s.pieces[static_cast<size_t>(s.collected)];
    Impl::Class& c = s.classes[static_cast<size_t>(piece.slot_class)];
    for (i64 i = piece.count; i > 0; i--)  // the lowest address is taken first
      c.free.push_back(static_cast<i32>(c.first_slot + piece.first + i - 1));
    c.usable += piece.count;
  }
  return any;
}

i64 Slab::usable_slots(i64 slot_class) const {
  return impl_->classes[static_cast<size_t>(slot_class)].usable;
}

i64 Slab::free_slots(i64 slot_class) const {
  return static_cast<i64>(impl_->classes[static_cast<size_t>(slot_class)].free.size());
}

bool Slab::growing() const {
  std::lock_guard lock(impl_->mutex);
  return !impl_->done || impl_->collected < impl_->grown;
}

i64 Slab::expected_slots() const {
  if (growing()) return impl_->planned;
  i64 slots = 0;
  for (const Impl::Class& c : impl_->classes) slots += c.usable;
  return slots;
}

i64 Slab::expected_bytes() const {
  if (growing()) return impl_->arena.bytes();
  i64 bytes = 0;
  for (const Impl::Class& c : impl_->classes) bytes += c.usable * c.slot_bytes;
  return bytes;
}

void Slab::stop_growing() {
  impl_->stop.store(true);
  if (impl_->thread.joinable()) impl_->thread.join();
}

Slab::Range Slab::last_piece() const {
  const Impl& s = *impl_;
  CHECK(!growing());
  if (s.collected <= s.minimum_pieces) return {};
  const Impl::Piece& piece = s.pieces[static_cast<size_t>(s.collected - 1)];
  return {SlotId(s.classes[static_cast<size_t>(piece.slot_class)].first_slot + piece.first), piece.count};
}

i64 Slab::drop_last_piece() {
  Impl& s = *impl_;
  const Range range = last_piece();
  CHECK(range.count > 0);
  const Impl::Piece& piece = s.pieces[static_cast<size_t>(s.collected - 1)];
  Impl::Class& c = s.classes[static_cast<size_t>(piece.slot_class)];
  auto goes = [&](i32 slot) { return slot >= range.first.value && slot < range.first.value + range.count; };
  CHECK(static_cast<i64>(std::erase_if(c.free, goes)) == range.count);
  c.usable -= range.count;
  auto [data, bytes] = s.memory_of(piece);
  if (s.options.on_piece_gone) s.options.on_piece_gone(data, bytes);
  madvise(data, static_cast<size_t>(bytes), MADV_DONTNEED);
  std::lock_guard lock(s.mutex);
  s.grown--;
  s.collected--;
  return bytes;
}

void Slab::wait_growth(i64 timeout_ns) const {
  std::unique_lock lock(impl_->mutex);
  impl_->grown_changed.wait_for(lock, std::chrono::nanoseconds(timeout_ns),
                                [this] { return impl_->done || impl_->grown > impl_->collected; });
}

}  // namespace stoker
