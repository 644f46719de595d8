// Streams and events of host devices: a thread per stream.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/base/rng.h"
#include "kernels/base/threads.h"
#include "kernels/device/host_state.h"

namespace stoker {

class HostEvent final : public DeviceEvent {
 public:
  ~HostEvent() override;

  bool done() override;
  Status wait() override { return wait_for(last_ticket()); }

  // Each record has a number, so that a wait means the record before it and none that comes later.
  i64 next_ticket();
  i64 last_ticket();
  void complete(i64 ticket, const Status& status);
  Status wait_for(i64 ticket);

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  i64 recorded_ = 0, completed_ = 0;
  Status status_;  // of the last record that completed
};

class HostStream final : public HostDeviceStream {
 public:
  // `state` must outlive it. `seed`: of its delays.
  HostStream(HostDeviceState& state, u64 seed);
  ~HostStream() override;

  Status copy_to_device(DevicePtr to, const void* from, i64 bytes) override;
  Status copy_to_host(void* to, DevicePtr from, i64 bytes) override;
  Status copy_within(DevicePtr to, DevicePtr from, i64 bytes) override;
  Status copy_from_peer(DevicePtr to, HostDeviceState& other, DevicePtr from, i64 bytes);
  Status record(DeviceEvent& event) override;
  Status wait(DeviceEvent& event) override;
  Status synchronize() override;
  bool busy() override;
  void label(const char* what) override { label_ = what; }

  void post(const HostWork& work, i64 read_bytes) override;
  std::byte* real(DevicePtr memory) const override { return state_.real(memory); }
  WorkerPool& workers() override { return workers_; }

 private:
  static constexpr size_t kMostTasks = 1024;  // then posting waits, as it does with cards

  struct Task {
    enum class Kind { copy, op, record, wait } kind = Kind::op;
    HostWork work = HostWork();  // of copies and ops
    i64 bytes = 0;
    ModelledSpeed* speed = nullptr;  // of copies and ops
    ModelledSpeed* peer_speed = nullptr;
    HostEvent* event = nullptr;  // of records and waits
    i64 ticket = 0;
    HostFault fault = HostFault::none;
    const char* label = "";  // of ops
  };

  Status copy(const HostWork& work, i64 bytes, HostFault fault, ModelledSpeed& speed, ModelledSpeed* peer_speed = nullptr);
  Status push(const Task& task);
  void loop();
  void run(Task& task);
  Status execute(Task& task);

  HostDeviceState& state_;
  Rng rng_;
  const char* label_ = "compute";  // the owner's
  WorkerPool workers_{{.workers = 1, .pin = false}};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Task> tasks_{kMostTasks};  // a ring
  size_t first_ = 0, count_ = 0;         // guarded by mutex_, as what follows
  bool stop_ = false;
  Status failure_;  // what broke the stream
  std::thread thread_;
};

}  // namespace stoker
