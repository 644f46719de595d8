// Every Reader on real files: the same bytes, the same errors.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "kernels/base/log.h"
#include "kernels/base/rng.h"
#include "scheduler/tiers/disk.h"
#include "scheduler/tiers/open_reader.h"
#include "scheduler/tiers/pread_reader.h"
#include "scheduler/tiers/read_queue.h"
#include "tests/scheduler/pattern_file.h"

using namespace stoker;
using namespace stoker::test;

namespace {

constexpr u64 kSeeds[] = {11, 22};
constexpr i64 kFileBytes[] = {3 * kMiB + 1234, 777};

std::vector<std::string> log_lines;
void keep_line(LogLevel, std::string_view line) { log_lines.emplace_back(line); }

bool uring_here() {
  if (Disk::unavailable() == 0) return true;
  std::printf("skipped: io_uring is not available here\n");
  return false;
}

// Submits all pieces, however few are taken at a time, and returns the outcomes by index (tags are indices).
std::vector<i32> read_all(Reader& reader, const std::vector<ReadPiece>& pieces) {
  std::vector<i32> errors(pieces.size(), -1);
  std::span<const ReadPiece> left(pieces);
  size_t finished = 0;
  ReadDone done[16];
  while (finished < pieces.size()) {
    left = left.subspan(static_cast<size_t>(reader.submit(left)));
    if (!reader.wait(20'000'000'000)) break;
    i64 n = reader.poll(done);
    for (i64 i = 0; i < n; i++) errors[done[i].tag] = done[i].error;
    finished += static_cast<size_t>(n);
  }
  return errors;
}

// Random slices of two files, each rounded outwards to the alignment, into memory of their own.
void read_random_slices(Reader& reader, bool registered, u64 seed) {
  constexpr i64 kSlices = 60;
  constexpr i64 kRoom = 256 * kKiB;
  Buffer memory(kSlices * kRoom, "test");
  if (registered) reader.add_memory(memory.data(), memory.bytes());
  Rng rng(seed);
  std::vector<ReadPiece> pieces;
  for (i64 i = 0; i < kSlices; i++) {
    ReadPiece piece{.tag = static_cast<u64>(i), .file = static_cast<i32>(i % 2)};
    i64 size = kFileBytes[piece.file];
    i64 begin = i < 4 ? size - 1 - rng.below(500) : rng.below(size);  // some at the very end
    i64 end = begin + 1 + rng.below(std::min(size - begin, kRoom - 64 * kKiB));
    i64 unit = reader.alignment(piece.file);
    piece.priority = rng.below(2) == 0 ? ReadPriority::demand : ReadPriority::background;
    piece.offset = round_down(begin, unit);
    piece.bytes = round_up(end, unit) - piece.offset;
    piece.to = memory.data() + i * kRoom;
    pieces.push_back(piece);
  }
  i64 before = steady_clock().now_ns();
  std::vector<i32> errors = read_all(reader, pieces);
  CHECK(steady_clock().now_ns() > before);
  for (const ReadPiece& piece : pieces) {
    CHECK(errors[piece.tag] == 0);
    i64 bytes = std::min(piece.bytes, kFileBytes[piece.file] - piece.offset);
    CHECK(matches_pattern(piece.to, kSeeds[piece.file], piece.offset, bytes));
  }
  if (registered) reader.remove_memory(memory.data(), memory.bytes());
}

// Runs `body` in a process of its own, since it takes rights away from itself. 0: it went well.
int in_child(int (*body)()) {
  std::fflush(nullptr);
  pid_t child = fork();
  if (child == 0) {
    log_lines.clear();
    int result = 100;
    try {
      result = body();
    } catch (const std::exception& e) {
      std::printf("child: %s\n", e.what());
    }
    std::fflush(nullptr);
    _exit(result);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 200;
}

std::string child_path;  // file for the child to read

int read_in_child(Reader& reader) {
  Buffer memory(64 * kMiB, "test");
  reader.add_memory(memory.data(), memory.bytes());
  std::vector<ReadPiece> pieces{{.tag = 0, .offset = 4096, .bytes = 512 * kKiB, .to = memory.data()}};
  bool good = read_all(reader, pieces)[0] == 0 && matches_pattern(memory.data(), kSeeds[0], 4096, 512 * kKiB);
  reader.remove_memory(memory.data(), memory.bytes());
  return good ? 0 : 1;
}

}  // namespace

TEST_CASE("io_uring and pread deliver the same bytes, on disk and on tmpfs, registered or not") {
  bool uring = uring_here();
  for (const char* folder : {"", "/dev/shm"}) {
    if (*folder != 0 && !std::filesystem::is_directory(folder)) continue;
    PatternFile a(kSeeds[0], kFileBytes[0], folder), b(kSeeds[1], kFileBytes[1], folder);
    for (IoPath path : {IoPath::automatic, IoPath::uring, IoPath::pread}) {
      if (path == IoPath::uring && !uring) continue;
      for (i64 depth : {1, 5, 64}) {
        auto reader =
            open_reader({a.path(), b.path()},
                        {.path = path, .depth = depth, .max_piece_bytes = kMiB, .capacity = depth + 3});
        CHECK(reader->file_bytes(1) == kFileBytes[1]);
        CHECK(reader->file_name(0) == a.path());
        for (bool registered : {false, true}) read_random_slices(*reader, registered, 5);
      }
    }
  }
}

TEST_CASE("memory is registered with the kernel until it is taken back") {
  if (!uring_here()) return;
  PatternFile file(kSeeds[0], kMiB);
  auto reader = open_reader({file.path()}, {.path = IoPath::uring});
  Buffer memory(4 * kMiB, "test");  // below everybody's locked-memory limit
  for (int round = 0; round < 3; round++) {
    reader->add_memory(memory.data(), 2 * kMiB);
    reader->add_memory(memory.data() + 2 * kMiB, 2 * kMiB);
    // One read inside a registered part, one across the border of two, which only an unregistered read can
    // do.
    std::vector<ReadPiece> pieces{
        {.tag = 0, .bytes = 64 * kKiB, .to = memory.data()},
        {.tag = 1, .offset = 4096, .bytes = 64 * kKiB, .to = memory.data() + 2 * kMiB - 32 * kKiB}};
    std::vector<i32> errors = read_all(*reader, pieces);
    CHECK(reader->describe() == "io_uring, O_DIRECT, registered buffers");
    for (const ReadPiece& p : pieces) {
      CHECK(errors[p.tag] == 0);
      CHECK(matches_pattern(p.to, kSeeds[0], p.offset, p.bytes));
    }
    reader->remove_memory(memory.data() + 2 * kMiB, 2 * kMiB);
    reader->remove_memory(memory.data(), 2 * kMiB);
    CHECK(reader->describe() == "io_uring, O_DIRECT, unregistered buffers");
    memory =
        Buffer(4 * kMiB, "test");  // most likely at the same address: reads must not land in the old pages
  }
}

TEST_CASE("a file system without direct reads is read through the page cache, at any offset") {
  const char* path =
      "/sys/kernel/notes";  // a regular file whose size is true, on a file system that refuses O_DIRECT
  std::ifstream stream(path, std::ios::binary);
  std::string expected((std::istreambuf_iterator<char>(stream)), {});
  if (expected.size() < 100) {
    std::printf("skipped: no %s here\n", path);
    return;
  }
  set_log_sink(keep_line);
  log_lines.clear();
  auto reader = open_reader({path}, {});
  set_log_sink(nullptr);
  CHECK(log_lines.size() == 1);
  CHECK(reader->describe() == "pread on 16 threads, page cache");
  CHECK(reader->alignment(0) == 1);
  std::string got(61, ' ');
  std::vector<ReadPiece> pieces{
      {.tag = 0, .offset = 33, .bytes = 61, .to = reinterpret_cast<std::byte*>(got.data())}};
  CHECK(read_all(*reader, pieces)[0] == 0);
  CHECK(got == expected.substr(33, 61));
}

TEST_CASE("no more pieces are taken than the capacity, until some are polled") {
  PatternFile file(kSeeds[0], kMiB);
  for (IoPath path : {IoPath::automatic, IoPath::pread}) {
    Buffer memory(64 * kKiB, "test");  // must outlive the reader, which is destroyed with reads under way
    auto reader = open_reader({file.path()}, {.path = path, .depth = 2, .capacity = 4});
    std::vector<ReadPiece> pieces;
    for (u64 i = 0; i < 8; i++) pieces.push_back({.tag = i, .bytes = 4096, .to = memory.data() + i * 4096});
    CHECK(reader->submit(pieces) == 4);
    CHECK(reader->submit(pieces) == 0);
    i64 polled = 0;
    ReadDone done[8];
    while (polled < 4 && reader->wait(10'000'000'000)) polled += reader->poll(done);
    CHECK(polled == 4);
    CHECK(reader->submit(std::span(pieces).subspan(4)) == 4);
  }
}

TEST_CASE("pieces that are not with the kernel can be promoted or had back, by whose they are") {
  ReadQueue queue(8);
  std::vector<ReadPiece> pieces;
  for (u64 i = 0; i < 6; i++) pieces.push_back({.tag = (1 + i % 2) << 32 | i, .priority = ReadPriority::predicted});
  CHECK(queue.submit(pieces) == 6);
  ReadPiece first, piece;
  REQUIRE(queue.take(first));
  CHECK(first.tag == pieces[0].tag);
  CHECK(!queue.take(piece));  // one may be with the kernel
  CHECK(queue.promote(ReadPriority::spare, 2) == 0);
  CHECK(queue.promote(ReadPriority::predicted, 2) == 3);
  for (size_t i : {1u, 3u}) {
    REQUIRE(queue.take(piece));
    CHECK(piece.tag == pieces[i].tag);
    CHECK(piece.priority == ReadPriority::demand);
  }
  queue.recall(ReadPriority::predicted, 1);
  ReadDone done[8];
  REQUIRE(queue.poll(done) == 2);
  for (i64 i : {0, 1}) {
    CHECK(done[i].tag == pieces[static_cast<size_t>(2 + 2 * i)].tag);
    CHECK(done[i].error == kRecalled);
    CHECK(done[i].priority == ReadPriority::predicted);
  }
  REQUIRE(queue.take(piece));
  CHECK(piece.tag == pieces[5].tag);
  CHECK(!queue.take(piece));
  ReadDone landed{.tag = first.tag, .priority = first.priority};
  queue.finish({&landed, 1});
  CHECK(queue.poll(done) == 1);
  CHECK(done[0].error == 0);
}

TEST_CASE("a file that was truncated after it was opened gives EIO") {
  for (IoPath path : {IoPath::automatic, IoPath::pread}) {
    PatternFile file(kSeeds[0], kMiB);
    auto reader = open_reader({file.path()}, {.path = path});
    CHECK(truncate(file.path().c_str(), 600 * 1000) == 0);
    Buffer memory(kMiB, "test");
    std::vector<ReadPiece> pieces{{.tag = 0, .offset = 0, .bytes = 256 * kKiB, .to = memory.data()},
                                  {.tag = 1,
                                   .offset = 512 * kKiB,
                                   .bytes = 256 * kKiB,
                                   .to = memory.data() + 256 * kKiB},  // ends in the middle
                                  {.tag = 2,
                                   .offset = 768 * kKiB,
                                   .bytes = 256 * kKiB,
                                   .to = memory.data() + 512 * kKiB}};  // past the end
    std::vector<i32> errors = read_all(*reader, pieces);
    CHECK(errors[0] == 0);
    CHECK(errors[1] == EIO);
    CHECK(errors[2] == EIO);
  }
}

TEST_CASE("a read into memory that is not there gives EFAULT, and the next one works") {
  PatternFile file(kSeeds[0], kMiB);
  for (IoPath path : {IoPath::automatic, IoPath::pread}) {
    auto reader = open_reader({file.path()}, {.path = path});
    Buffer memory(kMiB, "test");
    std::vector<ReadPiece> bad{{.tag = 0, .bytes = 4096, .to = reinterpret_cast<std::byte*>(i64{4096})}};
    CHECK(read_all(*reader, bad)[0] == EFAULT);
    std::vector<ReadPiece> good{{.tag = 0, .bytes = 4096, .to = memory.data()}};
    CHECK(read_all(*reader, good)[0] == 0);
    CHECK(matches_pattern(memory.data(), kSeeds[0], 0, 4096));
  }
}

TEST_CASE("a missing file and a folder are refused by name") {
  for (std::string path : {std::string("/nowhere/model.gguf"), std::string("/tmp")}) {
    try {
      open_reader({path}, {});
      FAIL("opened " << path);
    } catch (const Error& e) {
      CHECK(std::string(e.what()).find(path) != std::string::npos);
    }
  }
}

TEST_CASE("an ordinary user's locked-memory limit costs registration, not the read, and is said once") {
  if (!uring_here()) return;
  PatternFile file(kSeeds[0], kMiB);
  child_path = file.path();
  CHECK(in_child([] {
          rlimit limit{8u << 20, 8u << 20};
          if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0) return 10;
          // Root may lock what it likes: become somebody else.
          if (getuid() == 0 && setresuid(65534, 65534, 65534) != 0) return 11;
          set_log_sink(keep_line);
          auto reader = open_reader({child_path}, {.path = IoPath::uring});
          for (int i = 0; i < 2; i++)
            if (int bad = read_in_child(*reader)) return bad;
          if (log_lines.size() != 1) return 12;
          if (log_lines[0].find("memlock unlimited") == std::string::npos) return 13;
          return reader->describe().find("unregistered") != std::string::npos ? 0 : 14;
        }) == 0);
}

TEST_CASE("where a filter refuses io_uring, pread takes over and says so; asking for io_uring is an error") {
  PatternFile file(kSeeds[0], kMiB);
  child_path = file.path();
  CHECK(in_child([] {
          sock_filter code[] = {
              BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),  // seccomp_data::nr
              BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
              BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
              BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
          };
          sock_fprog filter{static_cast<unsigned short>(std::size(code)), code};
          if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return 10;
          if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) return 11;
          set_log_sink(keep_line);
          auto reader = open_reader({child_path}, {});
          if (reader->describe().find("pread") == std::string::npos) return 12;
          if (log_lines.size() != 1 || log_lines[0].find("io_uring is not available") == std::string::npos)
            return 13;
          if (int bad = read_in_child(*reader)) return bad;
          try {
            open_reader({child_path}, {.path = IoPath::uring});
            return 14;
          } catch (const Error&) {
            return 0;
          }
        }) == 0);
}
