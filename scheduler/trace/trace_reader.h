// TraceReader: the records of a trace file, from the first to the last whole one. A file that is cut in the middle of a
// record (its writer was killed, or still writes) ends before it. Owner: one thread.
#pragma once

#include <cstdio>
#include <memory>
#include <string>

#include "scheduler/trace/trace_format.h"

namespace stoker {

class TraceReader final : public TraceSource {
 public:
  // Throws Error: cannot be read, not a trace, other version, cut header.
  explicit TraceReader(const std::string& path);

  const TraceHeader& header() const override { return header_; }
  const std::string& path() const { return path_; }
  i64 records() const { return records_; }          // whole ones
  i64 cut_bytes() const { return cut_bytes_; }      // after the last whole record
  i64 file_bytes() const { return kTraceHeaderBytes + records_ * header_.record_bytes() + cut_bytes_; }

  bool next(TraceRecord& record) override;
  void seek(i64 index);  // the record that next() gives, 0 .. records()

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::string path_;
  std::unique_ptr<std::FILE, Close> file_;
  TraceHeader header_;
  i64 records_ = 0, cut_bytes_ = 0, next_ = 0;
  std::string bytes_;
};

}  // namespace stoker
