// Host devices must be as strict as cards: every way of using one wrongly that this file shows would be a bug on a card.
#include "kernels/device/host_device.h"

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <thread>
#include <vector>

#include "kernels/base/clock.h"
#include "kernels/device/link_probe.h"
#include "kernels/device/mapped_flag.h"

using namespace stoker;

namespace {

// Some cases look at or change memory that a copy is using, to see when it does. ThreadSanitizer rightly calls that a race.
#ifdef __SANITIZE_THREAD__
constexpr bool kRacesAreErrors = true;
#else
constexpr bool kRacesAreErrors = false;
#endif

constexpr i64 kBytes = 64 * kKiB;
constexpr i64 kFloats = kBytes / i64{sizeof(f32)};

std::unique_ptr<Device> device_with(HostDeviceOptions options) {
  options.vram_bytes = kMiB;
  return open_host_device(options, "host:0");
}

DevicePtr memory_of(Device& device, i64 bytes = kBytes) {
  DevicePtr memory;
  REQUIRE(device.allocate(bytes, "a test", memory).ok());
  return memory;
}

std::vector<f32> numbers(f32 first) {
  std::vector<f32> x(static_cast<size_t>(kFloats));
  for (size_t i = 0; i < x.size(); i++) x[i] = first + static_cast<f32>(i);
  return x;
}

std::vector<f32> read(DeviceStream& stream, DevicePtr from) {
  std::vector<f32> x(static_cast<size_t>(kFloats));
  REQUIRE(stream.copy_to_host(x.data(), from, kBytes).ok());
  REQUIRE(stream.synchronize().ok());
  return x;
}

bool all_nan(const std::vector<f32>& x) {
  for (f32 v : x)
    if (!std::isnan(v)) return false;
  return true;
}

// Whether touching the address ends with a signal, tried in a process of its own.
bool faults(u64 address) {
  pid_t child = fork();
  if (child == 0) {
    std::signal(SIGSEGV, [](int) { _exit(1); });
    std::signal(SIGBUS, [](int) { _exit(1); });
    volatile char c = *reinterpret_cast<const volatile char*>(address);
    static_cast<void>(c);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void pause_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

f64 ms_since(i64 begin_ns) { return static_cast<f64>(steady_clock().now_ns() - begin_ns) * 1e-6; }

}  // namespace

TEST_CASE("the CPU faults on a device's address") {
  auto device = device_with({});
  DevicePtr memory = memory_of(*device);
  std::vector<char> ordinary(1);
  CHECK_FALSE(faults(reinterpret_cast<u64>(ordinary.data())));
  CHECK(faults(memory.address));
  CHECK(faults((memory + (kBytes - 1)).address));
}

TEST_CASE("what is copied to a device and within it comes back") {
  auto device = device_with({});
  auto stream = device->make_stream();
  DevicePtr a = memory_of(*device), b = memory_of(*device);
  std::vector<f32> x = numbers(1);
  CHECK(stream->copy_to_device(a, x.data(), kBytes).ok());
  CHECK(stream->copy_within(b, a, kBytes).ok());
  CHECK(read(*stream, b) == x);
}

TEST_CASE("memory is NaN before it is written and after it was freed") {
  auto device = device_with({});
  auto stream = device->make_stream();
  DevicePtr memory = memory_of(*device);
  CHECK(all_nan(read(*stream, memory)));
  std::vector<f32> x = numbers(1);
  CHECK(stream->copy_to_device(memory, x.data(), kBytes).ok());
  CHECK(stream->synchronize().ok());
  device->free(memory);
  CHECK(all_nan(read(*stream, memory)));
}

TEST_CASE("a copy reads its source when its time has come, not when it is posted" * doctest::skip(kRacesAreErrors)) {
  auto device = device_with({.link_gb_per_second = 0.001});  // 64 KiB in 65 ms
  auto stream = device->make_stream();
  DevicePtr memory = memory_of(*device);
  std::vector<f32> x = numbers(1);
  CHECK(stream->copy_to_device(memory, x.data(), kBytes).ok());
  pause_ms(10);
  for (f32& v : x) v += 1000;
  CHECK(read(*stream, memory) == x);
}

TEST_CASE("a copy to the host is not there before its event is done" * doctest::skip(kRacesAreErrors)) {
  auto device = device_with({.link_gb_per_second = 0.001});
  auto stream = device->make_stream();
  auto event = device->make_event();
  DevicePtr memory = memory_of(*device);
  CHECK(event->done());  // never recorded
  std::vector<f32> x = numbers(1), y(x.size());
  CHECK(stream->copy_to_device(memory, x.data(), kBytes).ok());
  CHECK(stream->copy_to_host(y.data(), memory, kBytes).ok());
  CHECK(stream->record(*event).ok());
  pause_ms(90);  // the second copy is under way
  CHECK_FALSE(event->done());
  CHECK(y[1] == 0);
  CHECK(event->wait().ok());
  CHECK(event->done());
  CHECK(y == x);
}

TEST_CASE("a stream waits for the event of another stream, of another device too") {
  HostDeviceOptions slow{.link_gb_per_second = 0.001};
  auto first = device_with(slow), second = device_with({});
  auto up = first->make_stream(), across = second->make_stream();
  auto event = first->make_event();
  DevicePtr a = memory_of(*first), b = memory_of(*second);
  std::vector<f32> x = numbers(1);
  CHECK(up->copy_to_device(a, x.data(), kBytes).ok());
  CHECK(up->record(*event).ok());
  CHECK(across->wait(*event).ok());
  CHECK(second->copy_from_peer(*across, b, *first, a, kBytes).ok());
  CHECK(read(*across, b) == x);
}

TEST_CASE("posted work runs in order, in the stream's thread, and takes the modelled time") {
  auto device = device_with({.compute_gb_per_second = 0.01});
  auto stream = device->make_stream();
  auto& host = static_cast<HostDeviceStream&>(*stream);
  DevicePtr memory = memory_of(*device);
  std::vector<f32> x = numbers(0);
  CHECK(stream->copy_to_device(memory, x.data(), kBytes).ok());
  CHECK(stream->synchronize().ok());
  i64 begin = steady_clock().now_ns();
  for (f32 factor : {2.f, 3.f}) {
    host.post(HostWork([&host, memory, factor] {
                f32* y = reinterpret_cast<f32*>(host.real(memory));
                for (i64 i = 0; i < kFloats; i++) y[i] = y[i] * factor + 1;
              }),
              100'000);  // 10 ms
  }
  CHECK(stream->synchronize().ok());
  CHECK(ms_since(begin) >= 20);
  CHECK(ms_since(begin) < 200);
  CHECK(read(*stream, memory)[5] == (5 * 2 + 1) * 3 + 1);
}

TEST_CASE("the two directions of a link do not wait for each other, streams of one direction do") {
  auto device = device_with({.link_gb_per_second = 0.002});  // 64 KiB in 33 ms
  auto one = device->make_stream(), two = device->make_stream();
  DevicePtr a = memory_of(*device), b = memory_of(*device);
  std::vector<f32> x = numbers(1), y(x.size());
  i64 begin = steady_clock().now_ns();
  CHECK(one->copy_to_device(a, x.data(), kBytes).ok());
  CHECK(two->copy_to_host(y.data(), b, kBytes).ok());
  CHECK(one->synchronize().ok());
  CHECK(two->synchronize().ok());
  CHECK(ms_since(begin) >= 32);
  CHECK(ms_since(begin) < 60);
  begin = steady_clock().now_ns();
  CHECK(one->copy_to_device(a, x.data(), kBytes).ok());
  CHECK(two->copy_to_device(b, x.data(), kBytes).ok());
  CHECK(one->synchronize().ok());
  CHECK(two->synchronize().ok());
  CHECK(ms_since(begin) >= 65);
}

TEST_CASE("seeded delays make operations late and change nothing else") {
  for (u64 seed : {1, 2, 3}) {
    auto device = device_with({.delay_us_max = 2000, .seed = seed});
    auto stream = device->make_stream();
    DevicePtr a = memory_of(*device), b = memory_of(*device);
    std::vector<f32> x = numbers(1);
    CHECK(stream->copy_to_device(a, x.data(), kBytes).ok());
    CHECK(stream->copy_within(b, a, kBytes).ok());
    CHECK(read(*stream, b) == x);
  }
}

TEST_CASE("posting more than a stream holds waits for room") {
  auto device = device_with({});
  auto stream = device->make_stream();
  DevicePtr memory = memory_of(*device);
  std::vector<f32> x = numbers(1);
  for (int i = 0; i < 3000; i++) CHECK(stream->copy_to_device(memory, x.data(), 64).ok());
  CHECK(stream->synchronize().ok());
}

TEST_CASE("memory that is full, then freed, can be had in one piece again") {
  auto device = device_with({});
  std::vector<DevicePtr> all;
  DevicePtr memory;
  while (device->allocate(kBytes, "a test", memory).ok()) all.push_back(memory);
  CHECK(all.size() == static_cast<size_t>(kMiB / kBytes));
  CHECK(device->properties().free_bytes == 0);
  CHECK(device->allocate(1, "one more", memory).message().find("no 0.0 MiB left for one more") != std::string::npos);
  CHECK_FALSE(memory);
  for (size_t i : {3, 1, 2}) device->free(all[i]);
  CHECK(device->allocate(3 * kBytes, "a test", memory).ok());
  CHECK(memory == all[1]);
  device->free(memory);
  for (size_t i = 0; i < all.size(); i++)
    if (i < 1 || i > 3) device->free(all[i]);
  CHECK(device->allocate(kMiB, "a test", memory).ok());
}

TEST_CASE("a copy that fails breaks its stream and leaves the others alone") {
  auto device = device_with({.fail_copy = 2});
  auto stream = device->make_stream(), other = device->make_stream();
  auto before = device->make_event(), after = device->make_event();
  DevicePtr memory = memory_of(*device);
  std::vector<f32> x = numbers(1), y = numbers(5);
  CHECK(stream->copy_to_device(memory, x.data(), kBytes).ok());
  CHECK(stream->record(*before).ok());
  CHECK(stream->copy_to_device(memory, y.data(), kBytes).ok());
  static_cast<void>(stream->record(*after));
  CHECK(before->wait().ok());
  CHECK(after->wait().message() == "host:0: a copy has failed");
  CHECK_FALSE(stream->copy_to_device(memory, y.data(), kBytes).ok());
  CHECK_FALSE(stream->synchronize().ok());
  CHECK(device->status().ok());
  CHECK(read(*other, memory) == x);
  CHECK(other->wait(*after).ok());  // posted
  CHECK_FALSE(other->synchronize().ok());
}

TEST_CASE("a lost device fails everything from then on, and its memory can still be given back") {
  auto device = device_with({.lose_at = 2});
  auto stream = device->make_stream(), other = device->make_stream();
  DevicePtr memory = memory_of(*device);
  std::vector<f32> x = numbers(1);
  CHECK(stream->copy_to_device(memory, x.data(), kBytes).ok());
  CHECK(stream->synchronize().ok());
  CHECK(stream->copy_to_device(memory, x.data(), kBytes).ok());  // posted
  CHECK(stream->synchronize().message() == "host:0: the device is lost");
  CHECK_FALSE(device->status().ok());
  CHECK_FALSE(other->synchronize().ok());
  device->free(memory);
}

TEST_CASE("an allocation fails when asked to") {
  auto device = device_with({.fail_allocation = 2});
  DevicePtr memory;
  CHECK(device->allocate(kBytes, "a test", memory).ok());
  CHECK_FALSE(device->allocate(kBytes, "a test", memory).ok());
  CHECK_FALSE(memory);
  CHECK(device->allocate(kBytes, "a test", memory).ok());
}

TEST_CASE("mapped memory has an address that the device reads in place") {
  auto device = device_with({});
  auto stream = device->make_stream();
  auto& host = static_cast<HostDeviceStream&>(*stream);
  std::vector<i32> cell(1);
  CHECK(device->pin_host(cell.data(), 4, true).ok());
  CHECK_FALSE(device->pin_host(cell.data(), 4, true).ok());
  DevicePtr seen = device->mapped_address(cell.data());
  host.post(HostWork([&host, seen] { *reinterpret_cast<i32*>(host.real(seen)) = 7; }), 0);
  CHECK(stream->synchronize().ok());
  CHECK(cell[0] == 7);
  device->unpin_host(cell.data());
}

TEST_CASE("a flag is seen behind what was handed over, and a stream that has failed or forgotten it ends the wait") {
  auto raise = [](DeviceStream& stream, MappedFlag& flag) {
    auto& host = static_cast<HostDeviceStream&>(stream);
    host.post(HostWork([&host, at = flag.at_device(), value = flag.next()] {
                auto* word = reinterpret_cast<u32*>(host.real({reinterpret_cast<u64>(at)}));
                std::atomic_ref(*word).store(value, std::memory_order_release);
              }), 0);
  };
  for (i64 lose_at : {0, 41, 42}) {
    std::unique_ptr<Device> device = device_with({.delay_us_max = 300, .lose_at = lose_at});
    DevicePtr memory = memory_of(*device);
    MappedFlag flag(*device);
    REQUIRE(flag.usable());
    std::unique_ptr<DeviceStream> stream = device->make_stream();
    std::vector<f32> from = numbers(3), to(from.size());
    Status status;
    i64 passed = 0;
    for (; passed < 20 && status.ok(); passed++) {
      std::fill(to.begin(), to.end(), 0.0f);
      static_cast<void>(stream->copy_to_device(memory, from.data(), kBytes));
      static_cast<void>(stream->copy_to_host(to.data(), memory, kBytes));
      raise(*stream, flag);
      status = flag.wait(*stream);
      if (status.ok()) CHECK(to == from);
    }
    CHECK(status.ok() == (lose_at == 0));
    CHECK(passed == (lose_at == 0 ? 20 : 14));
    if (!status.ok()) CHECK(status.message().find("host:0") == 0);
    device->free(memory);
  }
  std::unique_ptr<Device> device = device_with({});
  MappedFlag flag(*device);
  std::unique_ptr<DeviceStream> stream = device->make_stream();
  flag.next();
  CHECK_FALSE(flag.wait(*stream).ok());
}

TEST_CASE("copies of memory that is not pinned can be refused, and those that leave a pinned range always are") {
  for (bool only_pinned : {false, true}) {
    std::vector<f32> x = numbers(1);
    auto copy = [&](i64 pinned_floats, i64 first) {
      auto device = device_with({.only_pinned = only_pinned});
      auto stream = device->make_stream();
      DevicePtr memory = memory_of(*device);
      if (pinned_floats > 0) CHECK(device->pin_host(x.data(), pinned_floats * 4, false).ok());
      CHECK(stream->copy_to_device(memory, x.data() + first, 400).ok());  // posted
      static_cast<void>(stream->copy_to_host(x.data() + first, memory, 400));
      bool good = stream->synchronize().ok();
      device->unpin_host(x.data());
      return good;
    };
    CHECK(copy(kFloats, 0));
    CHECK(copy(kFloats, kFloats - 100));
    CHECK_FALSE(copy(150, 100));
    CHECK(copy(0, 0) != only_pinned);
    CHECK(copy(100, 100) != only_pinned);
  }
}

TEST_CASE("the probe finds the modelled speeds") {
  auto device = open_host_device(
      {.vram_bytes = 8 * kMiB, .link_gb_per_second = 0.2, .compute_gb_per_second = 0.4}, "host:0");
  LinkMeasure measure;
  CHECK(measure_link(*device, 2 * kMiB, 2, measure).ok());
  CHECK(measure.to_device_gb_per_second == doctest::Approx(0.2).epsilon(0.2));
  CHECK(measure.to_host_gb_per_second == doctest::Approx(0.2).epsilon(0.2));
  CHECK(measure.memory_gb_per_second == doctest::Approx(0.4).epsilon(0.2));
  CHECK(device->properties().free_bytes == 8 * kMiB);
}
