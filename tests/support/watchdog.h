// Watchdog: ends the program, with a message, when what it watches takes too long: a deadlock fails its test instead of
// hanging. Sanitizers are slow; give seconds that no life takes even so.
#pragma once

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "kernels/base/types.h"

namespace stoker::test {

class Watchdog {
 public:
  explicit Watchdog(i64 seconds) : thread_([this, seconds] { watch(std::chrono::seconds(seconds)); }) {}
  ~Watchdog() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
      changed_.notify_all();
    }
    thread_.join();
  }
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // The life with this seed begins, the one before has ended.
  void begin(u64 seed) {
    std::lock_guard lock(mutex_);
    seed_ = seed;
    lives_++;
    changed_.notify_all();
  }

 private:
  void watch(std::chrono::seconds patience) {
    std::unique_lock lock(mutex_);
    while (!stop_) {
      i64 lives = lives_;
      if (changed_.wait_for(lock, patience, [&] { return stop_ || lives_ != lives; })) continue;
      std::fprintf(stderr, "the life of seed %llu hangs\n", static_cast<unsigned long long>(seed_));
      std::abort();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  u64 seed_ = 0;
  i64 lives_ = 0;
  bool stop_ = false;
  std::thread thread_;
};

// How many lives a test has: a twentieth under sanitizers.
constexpr i64 lives(i64 count) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return count / 20;
#else
  return count;
#endif
}

}  // namespace stoker::test
