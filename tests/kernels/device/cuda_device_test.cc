// Cards as devices, over a CUDA runtime that is made of CPU memory: order, failures, and what belongs to the process.
#include "kernels/device/cuda_device.h"

#include <doctest/doctest.h>

#include <vector>

#include "kernels/base/timeline.h"
#include "kernels/device/device_buffer.h"
#include "kernels/device/link_probe.h"
#include "kernels/device/mapped_flag.h"
#include "tests/kernels/device/fake_cuda.h"

using namespace stoker;
namespace fake = stoker::test::fake_cuda;

namespace {

constexpr i64 kBytes = 4096;

struct Card {
  explicit Card(int ordinal) : device(open_cuda_device(ordinal, fmt::format("cuda:{}", ordinal))) {
    REQUIRE(device->allocate(kBytes, "a test", memory).ok());
  }
  ~Card() { device->free(memory); }

  std::unique_ptr<Device> device;
  DevicePtr memory;
  std::unique_ptr<DeviceStream> stream = device->make_stream();
  std::unique_ptr<DeviceEvent> event = device->make_event();
};

// A runtime of its own for each case, with nothing left in it.
struct Runtime {
  Runtime() { fake::reset(); }
  ~Runtime() {
    CHECK(fake::alive() == 0);
    CHECK(fake::pinned_ranges() == 0);
  }
};

bool says(const Status& status, const char* what) { return !status.ok() && status.message().find(what) != std::string::npos; }

}  // namespace

TEST_CASE("cards: copies run later and in order, and an event tells when they have") {
  Runtime runtime;
  Card card(0);
  std::vector<u8> up(kBytes, 7), down(kBytes);
  CHECK(card.stream->copy_to_device(card.memory, up.data(), kBytes).ok());
  CHECK(card.stream->copy_to_host(down.data(), card.memory, kBytes).ok());
  CHECK(card.stream->record(*card.event).ok());
  CHECK_FALSE(card.event->done());
  CHECK(down[5] == 0);
  fake::run_all();
  CHECK(card.event->done());
  CHECK(card.event->wait().ok());
  CHECK(down == up);
  CHECK(measure_link(*card.device, kBytes, 2, *std::make_unique<LinkMeasure>()).ok());
}

TEST_CASE("cards: a stream waits for another card's event") {
  Runtime runtime;
  Card first(0), second(1);
  std::vector<u8> x(kBytes, 1), y(kBytes);
  CHECK(first.stream->copy_to_device(first.memory, x.data(), kBytes).ok());
  CHECK(first.stream->record(*first.event).ok());
  CHECK(second.stream->wait(*first.event).ok());
  CHECK(second.device->copy_from_peer(*second.stream, second.memory, *first.device, first.memory, kBytes).ok());
  CHECK(second.stream->copy_to_host(y.data(), second.memory, kBytes).ok());
  CHECK(second.stream->synchronize().ok());
  CHECK(x == y);
  CHECK_FALSE(second.stream->record(*first.event).ok());  // of the other card
}

TEST_CASE("cards: access to another card is asked for once, and then copies are direct") {
  Runtime runtime;
  Card first(0), second(1), again(1);
  for (Card* card : {&second, &second, &again})
    CHECK(card->device->copy_from_peer(*card->stream, card->memory, *first.device, first.memory, kBytes).ok());
  CHECK(again.device->copy_from_peer(*again.stream, again.memory, *second.device, second.memory, kBytes).ok());
  CHECK(fake::direct_copies() == 3);
  CHECK(fake::peer_requests() == 2);  // of each logical device; the second's is no failure
  CHECK(again.stream->record(*again.event).ok());
  fake::run_all();
}

TEST_CASE("cards: a launch that failed is told by the next record or synchronize, whoever is asked in between") {
  Runtime runtime;
  Card card(0);
  std::vector<u8> x(kBytes);
  std::unique_ptr<DeviceStream> other = card.device->make_stream();
  std::unique_ptr<DeviceEvent> pending = card.device->make_event();
  CHECK(other->copy_to_device(card.memory, x.data(), kBytes).ok());
  CHECK(other->record(*pending).ok());
  CHECK(card.device->status().ok());

  SUBCASE("record") {
    fake::fail_launch(cudaErrorInvalidConfiguration);
    CHECK_FALSE(pending->done());
    CHECK(says(card.stream->record(*card.event), "launching a kernel"));
    CHECK_FALSE(card.device->status().ok());
  }
  SUBCASE("synchronize") {
    fake::fail_launch(cudaErrorNoKernelImageForDevice);
    CHECK(says(card.stream->synchronize(), "gpu_archs"));
  }
  SUBCASE("an event that has not passed is no failure") {
    CHECK_FALSE(pending->done());
    CHECK(card.stream->record(*card.event).ok());
  }
  fake::run_all();
}

TEST_CASE("cards: a lost card has a name, and the other one goes on whatever is asked of it") {
  Runtime runtime;
  Card lost(0), other(1);
  std::vector<u8> x(kBytes, 3), y(kBytes);
  CHECK(lost.stream->copy_to_device(lost.memory, x.data(), kBytes).ok());
  CHECK(lost.stream->record(*lost.event).ok());
  fake::lose(0, cudaErrorIllegalAddress);

  CHECK(lost.event->done());
  CHECK(lost.device->properties().id == "cuda:0");
  CHECK(lost.device->properties().free_bytes == 0);
  CHECK(other.stream->record(*other.event).ok());
  CHECK(other.stream->copy_to_device(other.memory, x.data(), kBytes).ok());
  CHECK(lost.event->done());
  CHECK(other.stream->copy_to_host(y.data(), other.memory, kBytes).ok());
  CHECK(other.stream->record(*other.event).ok());
  CHECK(other.event->wait().ok());
  CHECK(x == y);
  CHECK(other.device->status().ok());

  CHECK(says(lost.event->wait(), "cuda:0: waiting for the card: an illegal memory access"));
  CHECK_FALSE(lost.device->status().ok());
  CHECK_FALSE(lost.stream->copy_to_device(lost.memory, x.data(), kBytes).ok());
  CHECK_FALSE(lost.stream->record(*lost.event).ok());
  CHECK(other.stream->record(*other.event).ok());
  fake::run_all();
}

TEST_CASE("cards: memory is pinned once for all devices, until the last unpins it") {
  Runtime runtime;
  Card first(0), second(1);
  std::vector<u8> x(2 * kBytes);
  CHECK(first.device->pin_host(x.data(), kBytes, false).ok());
  CHECK(second.device->pin_host(x.data(), kBytes, false).ok());
  CHECK(fake::pinned_ranges() == 1);
  CHECK_FALSE(first.stream->copy_to_device(first.memory, x.data() + 1, kBytes).ok());  // leaves the range
  first.device->unpin_host(x.data());
  CHECK(fake::pinned_ranges() == 1);
  second.device->unpin_host(x.data());
  CHECK(fake::pinned_ranges() == 0);
  second.device->unpin_host(x.data());

  fake::refuse_pinning(true);
  CHECK_FALSE(second.device->pin_host(x.data(), kBytes, false).ok());
  { PinnedBuffer unpinned(*second.device, kBytes, "a test"); }
  CHECK(second.stream->record(*second.event).ok());
  CHECK(second.event->wait().ok());
}

TEST_CASE("cards: a flag is watched without asking the card for more than a sign of life, and a lost card ends the wait") {
  Runtime runtime;
  fake::run_when_asked(true);
  {
    Card card(1);
    MappedFlag flag(*card.device);
    REQUIRE(flag.usable());
    auto raise = [&] {
      const u32 value = flag.next();
      const auto* native = static_cast<const CudaStreamOfCard*>(card.stream->native());
      fake::launch(native->stream, [&flag, value] { *flag.at_device() = value; });
    };
    raise();
    CHECK(card.stream->busy());
    CHECK(flag.wait(*card.stream).ok());
    CHECK_FALSE(card.stream->busy());
    CHECK(cudaPeekAtLastError() == cudaSuccess);
    flag.next();
    fake::fail_launch(cudaErrorInvalidConfiguration);  // of what would have raised it
    CHECK(says(flag.wait(*card.stream), "cuda:1: launching a kernel"));
    raise();
    fake::lose(1, cudaErrorIllegalAddress);
    CHECK(says(flag.wait(*card.stream), "cuda:1: waiting for the card: an illegal memory access"));
  }
  fake::refuse_pinning(true);
  Card other(0);
  CHECK_FALSE(MappedFlag(*other.device).usable());
}

TEST_CASE("cards: no room is a failure and no loss; logical devices of a card share its memory") {
  Runtime runtime;
  Card one(0), two(0);
  DevicePtr memory, more;
  CHECK(one.device->allocate(fake::kCardBytes / 2, "a test", memory).ok());
  CHECK(two.device->properties().free_bytes == fake::kCardBytes / 2 - 2 * kBytes);
  CHECK(says(two.device->allocate(fake::kCardBytes / 2, "a test", more), "no 32.0 MiB left for a test"));
  CHECK_FALSE(more);
  CHECK(two.device->status().ok());
  CHECK(two.stream->record(*two.event).ok());
  CHECK(two.event->wait().ok());
  one.device->free(memory);
}

TEST_CASE("cards: a timeline has what a stream did, and costs no failed launch its message") {
  Runtime runtime;
  Timeline timeline;
  {
    std::unique_ptr<Device> device = open_cuda_device(0, "cuda:0");
    device->record(timeline);
    DeviceBuffer memory(*device, kBytes, "a test");
    std::unique_ptr<DeviceStream> stream = device->make_stream();
    std::unique_ptr<DeviceEvent> event = device->make_event();
    std::vector<u8> x(kBytes);
    stream->label("attention");
    CHECK(stream->copy_to_device(memory.data(), x.data(), kBytes).ok());
    stream->label("router");
    CHECK(stream->copy_to_device(memory.data(), x.data(), kBytes).ok());
    CHECK(stream->record(*event).ok());
    fake::fail_launch(cudaErrorInvalidConfiguration);
    CHECK(stream->copy_to_host(x.data(), memory.data(), kBytes).ok());  // looks whether the first span has ended
    CHECK(says(stream->record(*event), "launching a kernel"));
    CHECK(stream->copy_to_host(x.data(), memory.data(), kBytes).ok());
    CHECK(stream->record(*event).ok());
    CHECK(event->wait().ok());
  }
  std::vector<std::string> lanes = timeline.lanes();
  CHECK(lanes == std::vector<std::string>{"cuda:0", "cuda:0 up", "cuda:0 down"});
  std::vector<std::string> spans;
  for (const Timeline::Span& span : timeline.spans()) spans.push_back(span.what + std::string(" ") + lanes[static_cast<size_t>(span.lane)]);
  CHECK(spans == std::vector<std::string>{"attention cuda:0", "router cuda:0", "copy cuda:0 down", "copy cuda:0 down"});
}
