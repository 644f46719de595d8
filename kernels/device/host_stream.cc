#include "kernels/device/host_stream.h"

#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/base/clock.h"

namespace stoker {

namespace {

void sleep_until(i64 ns) {
  i64 now = steady_clock().now_ns();
  if (ns > now) std::this_thread::sleep_for(std::chrono::nanoseconds(ns - now));
}

}  // namespace

HostEvent::~HostEvent() { static_cast<void>(wait()); }

bool HostEvent::done() {
  std::lock_guard lock(mutex_);
  return completed_ >= recorded_;
}

i64 HostEvent::next_ticket() {
  std::lock_guard lock(mutex_);
  return ++recorded_;
}

i64 HostEvent::last_ticket() {
  std::lock_guard lock(mutex_);
  return recorded_;
}

void HostEvent::complete(i64 ticket, const Status& status) {
  std::lock_guard lock(mutex_);
  if (ticket <= completed_) return;
  completed_ = ticket;
  status_ = status;
  changed_.notify_all();
}

Status HostEvent::wait_for(i64 ticket) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return completed_ >= ticket; });
  return status_;
}

HostStream::HostStream(HostDeviceState& state, u64 seed) : state_(state), rng_(seed) {
  thread_ = std::thread([this] {
    unpin_this_thread();
    prctl(PR_SET_TIMERSLACK, 1000UL);  // modelled times are microseconds; the default adds 50
    loop();
  });
}

HostStream::~HostStream() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

Status HostStream::copy_to_device(DevicePtr to, const void* from, i64 bytes) {
  return copy(HostWork([this, to, from, bytes] { std::memcpy(real(to), from, static_cast<size_t>(bytes)); }), bytes,
              state_.next_fault(from, bytes), state_.up);
}

Status HostStream::copy_to_host(void* to, DevicePtr from, i64 bytes) {
  return copy(HostWork([this, to, from, bytes] { std::memcpy(to, real(from), static_cast<size_t>(bytes)); }), bytes,
              state_.next_fault(to, bytes), state_.down);
}

Status HostStream::copy_within(DevicePtr to, DevicePtr from, i64 bytes) {
  return copy(HostWork([this, to, from, bytes] { std::memcpy(real(to), real(from), static_cast<size_t>(bytes)); }),
              2 * bytes, state_.next_fault(true), state_.compute);  // read and written
}

Status HostStream::copy_from_peer(DevicePtr to, HostDeviceState& other, DevicePtr from, i64 bytes) {
  HostDeviceState* peer = &other;
  HostWork work([this, to, peer, from, bytes] { std::memcpy(real(to), peer->real(from), static_cast<size_t>(bytes)); });
  return copy(work, bytes, state_.next_fault(true), state_.up, &other.down);
}

Status HostStream::copy(const HostWork& work, i64 bytes, HostFault fault, ModelledSpeed& speed, ModelledSpeed* peer_speed) {
  return push({.kind = Task::Kind::copy,
               .work = work,
               .bytes = bytes,
               .speed = &speed,
               .peer_speed = peer_speed,
               .fault = fault});
}

void HostStream::post(const HostWork& work, i64 read_bytes) {
  // How it goes is told by the next event.
  static_cast<void>(push({.kind = Task::Kind::op,
                          .work = work,
                          .bytes = read_bytes,
                          .speed = &state_.compute,
                          .fault = state_.next_fault(false),
                          .label = label_}));
}

Status HostStream::record(DeviceEvent& event) {
  auto& recorded = static_cast<HostEvent&>(event);
  return push({.kind = Task::Kind::record, .event = &recorded, .ticket = recorded.next_ticket()});
}

Status HostStream::wait(DeviceEvent& event) {
  auto& awaited = static_cast<HostEvent&>(event);
  return push({.kind = Task::Kind::wait, .event = &awaited, .ticket = awaited.last_ticket()});
}

Status HostStream::synchronize() {
  HostEvent event;
  static_cast<void>(record(event));
  return event.wait();
}

bool HostStream::busy() {
  std::lock_guard lock(mutex_);
  return count_ > 0;
}

Status HostStream::push(const Task& task) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return count_ < kMostTasks; });
  tasks_[(first_ + count_++) % kMostTasks] = task;
  changed_.notify_all();
  return failure_;
}

void HostStream::loop() {
  for (;;) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return count_ > 0 || stop_; });
    if (count_ == 0) return;
    Task& task = tasks_[first_];  // its place is not reused before count_ says so
    lock.unlock();
    run(task);
    lock.lock();
    first_ = (first_ + 1) % kMostTasks;
    count_--;
    changed_.notify_all();
  }
}

void HostStream::run(Task& task) {
  Status failure;
  {
    std::lock_guard lock(mutex_);
    failure = failure_;
  }
  if (failure.ok()) failure = execute(task);
  if (task.kind == Task::Kind::record) task.event->complete(task.ticket, failure);
  std::lock_guard lock(mutex_);
  failure_ = failure;
}

Status HostStream::execute(Task& task) {
  if (state_.options.delay_us_max > 0)
    sleep_until(steady_clock().now_ns() + rng_.below(state_.options.delay_us_max * 1000));
  if (task.fault == HostFault::lost) state_.lose();
  Status status = state_.status();
  if (!status.ok() || task.kind == Task::Kind::record) return status;
  if (task.kind == Task::Kind::wait) return task.event->wait_for(task.ticket);
  if (task.fault == HostFault::pinning)
    return Status::failure(fmt::format("{}: a copy of host memory that is not pinned, or only in part", state_.id));
  if (task.fault == HostFault::copy) return Status::failure(fmt::format("{}: a copy has failed", state_.id));
  auto [begin_ns, end_ns] = task.speed->reserve(task.bytes);
  if (task.peer_speed != nullptr) end_ns = std::max(end_ns, task.peer_speed->reserve(task.bytes).end_ns);
  // A copy reads and writes at its end, so that nobody gets away with changing the source or looking at the target
  // before.
  if (task.kind == Task::Kind::copy) sleep_until(end_ns);
  task.work();
  if (state_.timeline != nullptr) {
    // Waking up late is no work of a modelled copy; what is not modelled took what it took.
    bool copy = task.kind == Task::Kind::copy, modelled = end_ns > begin_ns;
    i64 ended_ns = copy && modelled ? end_ns : std::max(end_ns, steady_clock().now_ns());
    state_.timeline->add({begin_ns, ended_ns, copy ? "copy" : task.label, task.speed->lane});
  }
  sleep_until(end_ns);
  return state_.status();
}

}  // namespace stoker
