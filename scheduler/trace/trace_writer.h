// TraceWriter: appends records to a trace. What is buffered reaches the file when there is enough of it, when a record
// comes a second after the last time, on flush() and at the end. Owner: one thread.
#pragma once

#include <string>

#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "scheduler/trace/trace_format.h"

namespace stoker {

class TraceWriter {
 public:
  // Creates the file, or empties it if it is a trace. Throws Error: another kind of file, or one that cannot be made.
  TraceWriter(const std::string& path, const TraceHeader& header, const Clock& clock = steady_clock());
  ~TraceWriter();
  TraceWriter(const TraceWriter&) = delete;
  TraceWriter& operator=(const TraceWriter&) = delete;

  const TraceHeader& header() const { return header_; }
  const std::string& path() const { return path_; }
  i64 records() const { return records_; }

  // Failure (a full disk): whole records stay in the file, and nothing more is written.
  Status append(const TraceRecord& record);
  Status flush();

 private:
  Status give_up(std::string_view reason);

  std::string path_;
  TraceHeader header_;
  const Clock& clock_;
  int fd_ = -1;
  i64 records_ = 0;
  i64 written_bytes_ = 0;
  i64 flushed_ns_ = 0;
  std::string buffer_;
  Status status_;
};

}  // namespace stoker
