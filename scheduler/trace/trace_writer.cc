#include "scheduler/trace/trace_writer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace stoker {

namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;
constexpr i64 kMostSilenceNs = 1'000'000'000;

// A wrong name after --trace must not cost a model.
void check_replaceable(int fd, const std::string& path) {
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size == 0) return;
  char start[8] = {};
  if (::pread(fd, start, sizeof start, 0) == ssize_t{sizeof start} && std::string_view(start, sizeof start) == kTraceMagic)
    return;
  ::close(fd);
  fail("{}: the file exists and is no trace; give another name, or delete it", path);
}

}  // namespace

TraceWriter::TraceWriter(const std::string& path, const TraceHeader& header, const Clock& clock)
    : path_(path), header_(header), clock_(clock) {
  check_trace_header(header, path);
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0) fail("{}: cannot write a trace there: {}", path, std::strerror(errno));
  check_replaceable(fd_, path);
  if (::ftruncate(fd_, 0) != 0) errno = 0;  // a device, or a pipe: they have no length
  buffer_ = encode_trace_header(header);
  Status status = flush();
  if (!status.ok()) {
    ::close(fd_);
    throw Error(status.message());
  }
}

TraceWriter::~TraceWriter() {
  static_cast<void>(flush());
  ::close(fd_);
}

Status TraceWriter::append(const TraceRecord& record) {
  if (!status_.ok()) return status_;
  encode_trace_record(header_, record, buffer_);
  records_++;
  bool due = buffer_.size() >= kBufferBytes || clock_.now_ns() - flushed_ns_ >= kMostSilenceNs;
  return due ? flush() : Status();
}

Status TraceWriter::flush() {
  for (std::string_view rest = buffer_; status_.ok() && !rest.empty();) {
    ssize_t count = ::write(fd_, rest.data(), rest.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return give_up(count < 0 ? std::strerror(errno) : "nothing was written");
    written_bytes_ += count;
    rest.remove_prefix(static_cast<size_t>(count));
  }
  buffer_.clear();
  flushed_ns_ = clock_.now_ns();
  return status_;
}

// The half of a record that a full disk leaves would do no harm, but the room may be somebody's.
Status TraceWriter::give_up(std::string_view reason) {
  i64 whole = written_bytes_ < kTraceHeaderBytes ? 0 : (written_bytes_ - kTraceHeaderBytes) / header_.record_bytes();
  if (::ftruncate(fd_, kTraceHeaderBytes + whole * header_.record_bytes()) != 0) errno = 0;
  status_ = Status::failure(fmt::format("{}: cannot write: {}; the trace ends after {} tokens", path_, reason, whole));
  buffer_.clear();
  return status_;
}

}  // namespace stoker
