#include "scheduler/trace/trace_reader.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/base/error.h"

namespace stoker {

TraceReader::TraceReader(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "rb")) {
  if (file_ == nullptr) fail("{}: cannot open it: {}", path, std::strerror(errno));
  struct stat info {};
  if (::fstat(::fileno(file_.get()), &info) != 0 || !S_ISREG(info.st_mode)) fail("{}: a trace is a file", path);
  bytes_.resize(kTraceHeaderBytes);
  bytes_.resize(std::fread(bytes_.data(), 1, bytes_.size(), file_.get()));
  header_ = decode_trace_header(bytes_, path);
  i64 bytes = info.st_size - kTraceHeaderBytes;
  records_ = bytes / header_.record_bytes();
  cut_bytes_ = bytes % header_.record_bytes();
  bytes_.resize(static_cast<size_t>(header_.record_bytes()));
}

bool TraceReader::next(TraceRecord& record) {
  if (next_ == records_) return false;
  if (std::fread(bytes_.data(), 1, bytes_.size(), file_.get()) != bytes_.size())
    fail("{}: record {} cannot be read: {}", path_, next_, std::ferror(file_.get()) != 0 ? std::strerror(errno) : "the file became shorter");
  decode_trace_record(header_, bytes_, next_, path_, record);
  next_++;
  return true;
}

void TraceReader::seek(i64 index) {
  CHECK(index >= 0 && index <= records_);
  if (::fseeko(file_.get(), kTraceHeaderBytes + index * header_.record_bytes(), SEEK_SET) != 0)
    fail("{}: cannot go to record {}: {}", path_, index, std::strerror(errno));
  next_ = index;
}

}  // namespace stoker
