#include "scheduler/model_file/output_file.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/error.h"

namespace stoker {

static constexpr i64 kStepBytes = 64 * kMiB;
static constexpr i64 kPage = 4096;
static constexpr i64 kSmallestDirect = 4 * kMiB;

OutputFile::OutputFile(const std::string& path) : path_(path), partial_(path + ".partial") {
  fd_ = open(partial_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail("{}: cannot create it: {}", partial_, std::strerror(errno));
  direct_fd_ = open(partial_.c_str(), O_WRONLY | O_CLOEXEC | O_DIRECT);
}

OutputFile::~OutputFile() {
  if (direct_fd_ >= 0) close(direct_fd_);
  if (fd_ >= 0) close(fd_);
  if (!partial_.empty()) unlink(partial_.c_str());
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(std::exchange(other.path_, {})),
      partial_(std::exchange(other.partial_, {})),
      fd_(std::exchange(other.fd_, -1)),
      direct_fd_(std::exchange(other.direct_fd_, -1)),
      position_(other.position_),
      flushed_(other.flushed_),
      durable_(other.durable_),
      dropped_(other.dropped_) {}

void OutputFile::failed(const char* doing) const {
  int error = errno;
  if (error == ENOSPC || error == EDQUOT || error == EFBIG)
    fail("{}: {} after {} MiB; free some space or write elsewhere (the partial file is removed)", path_,
         error == EFBIG ? "the file system or a limit forbids a larger file" : "the disk is full",
         position_ / kMiB);
  fail("{}: {} failed after {} MiB: {} (the partial file is removed)", path_, doing, position_ / kMiB,
       std::strerror(error));
}

// Only whole pages can be written directly, from memory at a page's start: what is before and after goes
// through the page cache.
void OutputFile::write(std::span<const std::byte> data) {
  i64 before = round_up(position_, kPage) - position_;
  i64 whole = round_down(static_cast<i64>(data.size()) - before, kPage);
  bool suits = (reinterpret_cast<u64>(data.data()) + static_cast<u64>(before)) % kPage == 0;
  if (direct_fd_ >= 0 && suits && whole >= kSmallestDirect) {
    write_through(data.first(static_cast<size_t>(before)), false);
    write_through(data.subspan(static_cast<size_t>(before), static_cast<size_t>(whole)), true);
    data = data.subspan(static_cast<size_t>(before + whole));
  }
  write_through(data, false);
  drop_written_pages();
}

void OutputFile::write_through(std::span<const std::byte> data, bool direct) {
  while (!data.empty()) {
    bool was_direct = direct;
    ssize_t done = pwrite(direct ? direct_fd_ : fd_, data.data(), data.size(), position_);
    if (done < 0 && errno == EINTR) continue;
    // The open succeeded, but this file system wants more than pages; or a full disk cut a write short.
    if (direct && (done < 0 || done % kPage != 0)) direct = false;
    if (done < 0 && was_direct) continue;
    if (done < 0) failed("writing");
    position_ += done;
    data = data.subspan(static_cast<size_t>(done));
  }
}

// A model larger than memory would push everybody's pages out and then stall on the kernel's dirty limit. So
// pages are sent to the disk while the next piece is made, and dropped once they are there.
void OutputFile::drop_written_pages() {
  if (position_ - flushed_ < kStepBytes) return;
  sync_file_range(fd_, flushed_, position_ - flushed_, SYNC_FILE_RANGE_WRITE);
  if (flushed_ > dropped_) {
    sync_file_range(fd_, dropped_, flushed_ - dropped_,
                    SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    posix_fadvise(fd_, dropped_, flushed_ - dropped_, POSIX_FADV_DONTNEED);
    dropped_ = flushed_;
  }
  flushed_ = position_;
}

void OutputFile::overwrite_start(std::span<const std::byte> data) {
  CHECK(static_cast<i64>(data.size()) <= position_);
  i64 end = std::exchange(position_, 0);
  write_through(data, false);
  position_ = end;
}

void OutputFile::finish(bool durable) {
  durable_ = durable;
  if (ftruncate(fd_, position_) != 0) failed("setting the length");
  // Errors of the disk itself may show only now. Small files, which tests make by the dozen, do without: a
  // sync costs 100 ms, and they are made again in no time.
  if (flushed_ > 0 || durable) {
    if (fdatasync(fd_) != 0) failed("writing");
    posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED);
  }
  if (direct_fd_ >= 0) close(std::exchange(direct_fd_, -1));
  if (close(std::exchange(fd_, -1)) != 0) failed("closing");
}

void OutputFile::commit() {
  if (std::rename(partial_.c_str(), path_.c_str()) != 0) failed("renaming");
  partial_.clear();
  if (!durable_) return;
  std::filesystem::path folder = std::filesystem::path(path_).parent_path();
  int fd = open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;  // a folder that may be written to but not read
  fsync(fd);
  close(fd);
}

i64 free_bytes_at(const std::string& path) {
  std::filesystem::path folder = std::filesystem::path(path).parent_path();
  struct statvfs info {};
  if (statvfs(folder.empty() ? "." : folder.c_str(), &info) != 0) return -1;
  return static_cast<i64>(info.f_bavail) * static_cast<i64>(info.f_frsize);
}

}  // namespace stoker
