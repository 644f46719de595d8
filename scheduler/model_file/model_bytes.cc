#include "scheduler/model_file/model_bytes.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "kernels/base/error.h"
#include "scheduler/model_file/gguf.h"

namespace stoker {

ModelBytes::ModelBytes(const Gguf& gguf) {
  for (const GgufFileInfo& file : gguf.files()) {
    int fd = open(file.path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
      int error = errno;
      for (int opened : fds_) close(opened);
      fail("{}: {}", file.path, std::strerror(error));
    }
    posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    paths_.push_back(file.path);
    fds_.push_back(fd);
  }
}

ModelBytes::~ModelBytes() {
  for (int fd : fds_) close(fd);
}

void ModelBytes::read(i32 file, i64 offset, std::span<std::byte> out) const {
  int fd = fds_[static_cast<size_t>(file)];
  i64 bytes = static_cast<i64>(out.size());
  for (i64 done = 0; done < bytes;) {
    ssize_t got = pread(fd, out.data() + done, static_cast<size_t>(bytes - done), offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0)
      fail("{}: cannot read at offset {}: {}", paths_[static_cast<size_t>(file)], offset + done,
           got == 0 ? "the file ends there" : std::strerror(errno));
    done += got;
  }
  posix_fadvise(fd, offset, bytes, POSIX_FADV_DONTNEED);
}

}  // namespace stoker
