#include "scheduler/trace/text_lines.h"

#include <zlib.h>

#include <cerrno>
#include <cstring>

#include "kernels/base/error.h"

namespace stoker {

void TextLines::Close::operator()(gzFile_s* file) const { ::gzclose(file); }

// zlib also reads files that are not compressed.
TextLines::TextLines(const std::string& path) : path_(path), file_(::gzopen(path.c_str(), "rb")) {
  if (file_ == nullptr) fail("{}: cannot open it: {}", path, std::strerror(errno));
  ::gzbuffer(file_.get(), 1u << 18);
}

bool TextLines::next(std::string& line) {
  line.clear();
  char part[4096];
  while (::gzgets(file_.get(), part, sizeof part) != nullptr) {
    line += part;
    if (line.back() == '\n') break;
  }
  int code = Z_OK;
  const char* problem = ::gzerror(file_.get(), &code);
  if (code != Z_OK && code != Z_STREAM_END) fail("{}: line {} cannot be read: {}", path_, number_ + 1, problem);
  if (line.empty()) return false;
  while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
  number_++;
  return true;
}

}  // namespace stoker
