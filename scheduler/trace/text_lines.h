// TextLines: a text file line by line, gzip-compressed or not. Owner: one thread.
#pragma once

#include <memory>
#include <string>

#include "kernels/base/types.h"

struct gzFile_s;

namespace stoker {

class TextLines {
 public:
  explicit TextLines(const std::string& path);  // throws Error
  bool next(std::string& line);                 // without its end; false after the last
  i64 number() const { return number_; }        // of the last line, from 1
  const std::string& path() const { return path_; }

 private:
  struct Close {
    void operator()(gzFile_s* file) const;
  };
  std::string path_;
  std::unique_ptr<gzFile_s, Close> file_;
  i64 number_ = 0;
};

}  // namespace stoker
