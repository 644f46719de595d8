#include "scheduler/tiers/disk.h"

#include <liburing.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <future>
#include <mutex>
#include <thread>

#include "kernels/base/check.h"
#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "kernels/base/log.h"
#include "kernels/base/threads.h"
#include "scheduler/tiers/read_queue.h"

namespace stoker {

namespace {

constexpr unsigned kBufferTable = 4096;  // registered pieces; a 1 TiB arena in pieces of 256 MiB
constexpr u64 kWakeTag = ~u64{0};
constexpr i64 kRetries = 1000;  // of one piece, when the kernel says "again"

// The newest mode first; older kernels answer EINVAL to flags they do not know (6.1, 5.19).
i32 open_ring(io_uring& ring, unsigned entries) {
  constexpr unsigned kModes[] = {
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN,
      IORING_SETUP_COOP_TASKRUN,
      0,
  };
  int result = 0;
  for (unsigned flags : kModes) {
    result = io_uring_queue_init(entries, &ring, flags);
    if (result != -EINVAL) break;
  }
  return -result;
}

std::string locked_memory_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return "unlimited";
  return fmt::format("{} KiB", limit.rlim_cur / 1024);
}

}  // namespace

struct Disk::Impl {
  // A piece that is with the kernel.
  struct Flight {
    ReadPiece piece;
    i64 got = 0;
    i64 retries = 0;
  };
  // All pieces of it have landed; the last one's result is reported when the data has been compared.
  struct Landed {
    ReadDone last;
    const ReadCheck* check;
  };
  struct Region {
    std::byte* begin;
    std::byte* end;
    int index;  // in the ring's buffer table
  };
  struct MemoryRequest {
    std::byte* data;
    i64 bytes;
    bool add;
  };

  Impl(std::vector<DirectFile> opened, Options o);
  ~Impl();
  void wake();
  void request_memory(const MemoryRequest& request);

  // --- I/O thread
  void run(std::promise<i32>& ready);
  void arm_wake();
  void start_pieces();
  void issue(size_t flight);
  void reap();
  void finish_read(size_t flight, i32 result, i64 now);
  void compare_one();
  void serve_memory_requests();
  void register_memory(const MemoryRequest& request);
  void unregister_memory(const MemoryRequest& request);
  bool set_buffer(int index, void* data, i64 bytes);
  const Region* region_of(const std::byte* data, i64 bytes) const;

  const std::vector<DirectFile> files;
  const Options options;
  ReadQueue queue;
  int wake_fd = -1;
  std::atomic<bool> stopping{false};
  std::atomic<i64> registered_bytes{0};
  std::atomic<bool> registration_refused{false};

  std::mutex memory_mutex;
  std::condition_variable memory_served;
  std::vector<MemoryRequest> memory_requests;  // guarded by memory_mutex
  u64 requested = 0, served = 0;               // guarded by memory_mutex

  // Owned by the I/O thread.
  io_uring ring{};
  bool fixed_files = false;
  bool buffer_table = false;
  u64 wake_value = 0;
  std::vector<Flight> flights;
  std::vector<size_t> idle_flights;
  std::vector<Region> regions;  // by address
  std::vector<int> idle_buffers;
  std::vector<ReadDone> done;
  std::vector<Landed> landed;  // oldest first

  std::thread thread;  // last: starts when all else exists
};

i32 Disk::unavailable() {
  io_uring ring{};
  i32 error = open_ring(ring, 4);
  if (error == 0) io_uring_queue_exit(&ring);
  return error;
}

Disk::Impl::Impl(std::vector<DirectFile> opened, Options o)
    : files(std::move(opened)), options(o), queue(o.capacity), flights(static_cast<size_t>(o.depth)) {
  for (size_t i = flights.size(); i > 0; i--) idle_flights.push_back(i - 1);
  done.reserve(flights.size());
  landed.reserve(static_cast<size_t>(o.capacity));
  wake_fd = eventfd(0, EFD_CLOEXEC);
  if (wake_fd < 0) fail("cannot create an event counter: {}", std::strerror(errno));
  std::promise<i32> ready;
  std::future<i32> result = ready.get_future();
  thread = std::thread([this, &ready] { run(ready); });
  i32 error = result.get();
  if (error == 0) return;
  thread.join();
  close(wake_fd);
  fail("io_uring cannot be used here: {}; use --io pread", std::strerror(error));
}

Disk::Impl::~Impl() {
  queue.stop();
  stopping.store(true);
  wake();
  thread.join();
  close(wake_fd);
}

void Disk::Impl::wake() {
  u64 one = 1;
  ssize_t n = write(wake_fd, &one, sizeof one);
  CHECK(n == sizeof one || errno == EAGAIN);
}

void Disk::Impl::request_memory(const MemoryRequest& request) {
  std::unique_lock lock(memory_mutex);
  memory_requests.push_back(request);
  u64 ticket = ++requested;
  wake();
  if (!request.add) memory_served.wait(lock, [&] { return served >= ticket; });
}

void Disk::Impl::run(std::promise<i32>& ready) {
  unpin_this_thread();
  i32 error = open_ring(ring, static_cast<unsigned>(options.depth) + 1);
  if (error != 0) {
    ready.set_value(error);
    return;
  }
  std::vector<int> fds;
  for (const DirectFile& file : files) fds.push_back(file.fd());
  fixed_files = io_uring_register_files(&ring, fds.data(), static_cast<unsigned>(fds.size())) == 0;
  buffer_table = io_uring_register_buffers_sparse(&ring, kBufferTable) == 0;
  for (int i = kBufferTable; buffer_table && i > 0; i--) idle_buffers.push_back(i - 1);
  ready.set_value(0);  // `ready` is gone from here on

  arm_wake();
  while (!stopping.load() || idle_flights.size() < flights.size()) {
    serve_memory_requests();
    start_pieces();
    // Comparing takes a millisecond: the drive gets its work before each.
    int result = landed.empty() ? io_uring_submit_and_wait(&ring, 1) : io_uring_submit_and_get_events(&ring);
    CHECK(result >= 0 || result == -EINTR || result == -EAGAIN || result == -EBUSY);
    if (!landed.empty()) compare_one();
    reap();
  }
  io_uring_queue_exit(&ring);
}

void Disk::Impl::arm_wake() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring);
  CHECK(sqe != nullptr);
  io_uring_prep_read(sqe, wake_fd, &wake_value, sizeof wake_value, 0);
  sqe->user_data = kWakeTag;
}

void Disk::Impl::start_pieces() {
  ReadPiece piece;
  while (!idle_flights.empty() && queue.take(piece)) {
    size_t flight = idle_flights.back();
    idle_flights.pop_back();
    flights[flight] = {.piece = piece};
    issue(flight);
  }
}

void Disk::Impl::issue(size_t flight) {
  const Flight& f = flights[flight];
  io_uring_sqe* sqe = io_uring_get_sqe(&ring);
  CHECK(sqe != nullptr);  // the ring has an entry for every flight and one for the wake-up
  std::byte* to = f.piece.to + f.got;
  i64 bytes = f.piece.bytes - f.got;
  u64 offset = static_cast<u64>(f.piece.offset + f.got);
  int fd = fixed_files ? f.piece.file : files[static_cast<size_t>(f.piece.file)].fd();
  if (const Region* region = region_of(to, bytes))
    io_uring_prep_read_fixed(sqe, fd, to, static_cast<unsigned>(bytes), offset, region->index);
  else
    io_uring_prep_read(sqe, fd, to, static_cast<unsigned>(bytes), offset);
  if (fixed_files) sqe->flags |= IOSQE_FIXED_FILE;
  sqe->user_data = flight;
}

void Disk::Impl::reap() {
  done.clear();
  io_uring_cqe* cqe = nullptr;
  while (io_uring_peek_cqe(&ring, &cqe) == 0) {
    i64 now = steady_clock().now_ns();
    u64 tag = cqe->user_data;
    i32 result = cqe->res;
    io_uring_cqe_seen(&ring, cqe);
    if (tag == kWakeTag)
      arm_wake();
    else
      finish_read(static_cast<size_t>(tag), result, now);
  }
  queue.finish(done);
}

void Disk::Impl::compare_one() {
  Landed oldest = landed.front();
  landed.erase(landed.begin());
  oldest.last.error = compare(*oldest.check);
  queue.finish({&oldest.last, 1});
}

void Disk::Impl::finish_read(size_t flight, i32 result, i64 now) {
  Flight& f = flights[flight];
  i32 error = 0;
  if (result < 0) {
    bool again = (result == -EINTR || result == -EAGAIN) && ++f.retries < kRetries;
    if (again) return issue(flight);
    error = -result;
  } else {
    const DirectFile& file = files[static_cast<size_t>(f.piece.file)];
    ReadStep step = file.advance(f.piece.offset, f.piece.bytes, result, f.got);
    if (step == ReadStep::more) return issue(flight);
    if (step == ReadStep::truncated) error = EIO;
  }
  idle_flights.push_back(flight);
  ReadDone read{.tag = f.piece.tag, .error = error, .finished_ns = now, .priority = f.piece.priority};
  if (completes(f.piece, error))
    landed.push_back({read, f.piece.check});
  else
    done.push_back(read);
}

void Disk::Impl::serve_memory_requests() {
  std::lock_guard lock(memory_mutex);
  if (memory_requests.empty()) return;
  for (const MemoryRequest& request : memory_requests) {
    if (request.add)
      register_memory(request);
    else
      unregister_memory(request);
  }
  memory_requests.clear();
  served = requested;
  memory_served.notify_all();
}

void Disk::Impl::register_memory(const MemoryRequest& request) {
  if (!buffer_table || idle_buffers.empty() || registration_refused.load()) return;
  int index = idle_buffers.back();
  if (!set_buffer(index, request.data, request.bytes)) {
    registration_refused.store(true);
    log_warning(
        "cannot register expert memory with the kernel ({}; locked-memory limit {}): reads go on "
        "unregistered, a "
        "little slower. To raise the limit: add \"YOUR_USER - memlock unlimited\" to "
        "/etc/security/limits.conf and log in "
        "again, or start with: sudo prlimit --memlock=unlimited --pid $$",
        std::strerror(errno), locked_memory_limit());
    return;
  }
  idle_buffers.pop_back();
  Region region{request.data, request.data + request.bytes, index};
  regions.insert(std::upper_bound(regions.begin(), regions.end(), region,
                                  [](const Region& a, const Region& b) { return a.begin < b.begin; }),
                 region);
  registered_bytes.fetch_add(request.bytes);
}

void Disk::Impl::unregister_memory(const MemoryRequest& request) {
  auto it =
      std::find_if(regions.begin(), regions.end(), [&](const Region& r) { return r.begin == request.data; });
  if (it == regions.end()) return;
  bool emptied = set_buffer(it->index, nullptr, 0);
  if (emptied) idle_buffers.push_back(it->index);  // else the entry is never used again
  registered_bytes.fetch_sub(it->end - it->begin);
  regions.erase(it);
}

// Fills (or, with nullptr, empties) one entry of the buffer table. False, with errno set, when the kernel
// refuses.
bool Disk::Impl::set_buffer(int index, void* data, i64 bytes) {
  iovec memory{data, static_cast<size_t>(bytes)};
  __u64 tag = 0;
  int result = io_uring_register_buffers_update_tag(&ring, static_cast<unsigned>(index), &memory, &tag, 1);
  if (result < 0) errno = -result;
  return result == 1;
}

const Disk::Impl::Region* Disk::Impl::region_of(const std::byte* data, i64 bytes) const {
  auto it = std::upper_bound(regions.begin(), regions.end(), data,
                             [](const std::byte* p, const Region& r) { return p < r.begin; });
  if (it == regions.begin()) return nullptr;
  const Region& region = *(it - 1);
  return data + bytes <= region.end ? &region : nullptr;
}

Disk::Disk(std::vector<DirectFile> files, Options options)
    : impl_(std::make_unique<Impl>(std::move(files), options)) {}
Disk::~Disk() = default;

i64 Disk::alignment(i32 file) const { return impl_->files[static_cast<size_t>(file)].alignment(); }
i64 Disk::file_bytes(i32 file) const { return impl_->files[static_cast<size_t>(file)].bytes(); }
std::string Disk::file_name(i32 file) const { return impl_->files[static_cast<size_t>(file)].path(); }
i64 Disk::depth() const { return impl_->options.depth; }
i64 Disk::capacity() const { return impl_->options.capacity; }
i64 Disk::max_piece_bytes() const { return impl_->options.max_piece_bytes; }

i64 Disk::submit(std::span<const ReadPiece> pieces) {
  i64 taken = impl_->queue.submit(pieces);
  if (taken > 0) impl_->wake();
  return taken;
}

void Disk::limit(ReadPriority priority, i64 pieces) { impl_->queue.limit(priority, pieces); }
i64 Disk::promote(ReadPriority from, u32 owner) {
  i64 moved = impl_->queue.promote(from, owner);
  if (moved > 0) impl_->wake();
  return moved;
}

void Disk::recall(ReadPriority from, u32 owner) { impl_->queue.recall(from, owner); }
i64 Disk::poll(std::span<ReadDone> done) { return impl_->queue.poll(done); }
bool Disk::wait(i64 timeout_ns) { return impl_->queue.wait(timeout_ns); }

void Disk::add_memory(std::byte* data, i64 bytes) {
  CHECK(bytes > 0 && bytes <= kGiB);
  impl_->request_memory({data, bytes, true});
}

void Disk::remove_memory(std::byte* data, i64 bytes) { impl_->request_memory({data, bytes, false}); }

std::string Disk::describe() const {
  bool direct =
      std::all_of(impl_->files.begin(), impl_->files.end(), [](const DirectFile& f) { return f.direct(); });
  bool registered = impl_->registered_bytes.load() > 0 && !impl_->registration_refused.load();
  return fmt::format("io_uring, {}, {} buffers", direct ? "O_DIRECT" : "page cache",
                     registered ? "registered" : "unregistered");
}

}  // namespace stoker
