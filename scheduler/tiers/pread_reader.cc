#include "scheduler/tiers/pread_reader.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include <fmt/format.h>

#include "kernels/base/clock.h"
#include "kernels/base/threads.h"

namespace stoker {

namespace {

i32 read_piece(const DirectFile& file, const ReadPiece& piece) {
  i64 got = 0;
  for (;;) {
    ssize_t n = pread(file.fd(), piece.to + got, static_cast<size_t>(piece.bytes - got), piece.offset + got);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n < 0) return errno;
    switch (file.advance(piece.offset, piece.bytes, n, got)) {
      case ReadStep::finished:
        return 0;
      case ReadStep::truncated:
        return EIO;
      case ReadStep::more:
        break;
    }
  }
}

}  // namespace

PreadReader::PreadReader(std::vector<DirectFile> files, Options options)
    : files_(std::move(files)), options_(options), queue_(options.capacity) {
  for (i64 i = 0; i < options_.depth; i++) threads_.emplace_back([this] { serve(); });
}

PreadReader::~PreadReader() {
  queue_.stop();
  for (std::thread& t : threads_) t.join();
}

void PreadReader::serve() {
  unpin_this_thread();
  ReadPiece piece;
  while (queue_.take_blocking(piece)) {
    ReadDone done{.tag = piece.tag, .priority = piece.priority};
    done.error = read_piece(files_[static_cast<size_t>(piece.file)], piece);
    done.finished_ns = steady_clock().now_ns();
    if (completes(piece, done.error)) done.error = compare(*piece.check);
    queue_.finish({&done, 1});
  }
}

i64 PreadReader::alignment(i32 file) const { return files_[static_cast<size_t>(file)].alignment(); }
i64 PreadReader::file_bytes(i32 file) const { return files_[static_cast<size_t>(file)].bytes(); }
std::string PreadReader::file_name(i32 file) const { return files_[static_cast<size_t>(file)].path(); }

std::string PreadReader::describe() const {
  bool direct = std::all_of(files_.begin(), files_.end(), [](const DirectFile& f) { return f.direct(); });
  return fmt::format("pread on {} threads, {}", options_.depth, direct ? "O_DIRECT" : "page cache");
}

}  // namespace stoker
