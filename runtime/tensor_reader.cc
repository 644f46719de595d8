#include "runtime/tensor_reader.h"

#include <fcntl.h>
#include <tbb/parallel_for.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "kernels/cpu/leaf.h"
#include "kernels/format/f16.h"
#include "runtime/interrupted.h"
#include "scheduler/model_file/gguf.h"

namespace stoker {

namespace {

size_t index(BlockType type) { return static_cast<size_t>(type); }

}  // namespace

TensorReader::TensorReader(const Gguf& gguf, const Hparams& hparams) : gguf_(gguf), h_(hparams) {
  for (const GgufFileInfo& file : gguf.files()) {
    int fd = open(file.path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
      int error = errno;
      for (int opened : files_) close(opened);
      fail("{}: {}", file.path, std::strerror(error));
    }
    files_.push_back(fd);
  }
}

TensorReader::~TensorReader() {
  for (int fd : files_) close(fd);
}

void TensorReader::run(std::span<const TensorRead> reads, const ReadProgress& progress) const {
  std::mutex mutex;
  size_t done = 0;
  std::atomic<bool> stopped{false};
  tbb::parallel_for(size_t{0}, reads.size(), [&](size_t i) {
    if (stopped) return;
    run(reads[i]);
    std::lock_guard lock(mutex);
    done++;
    if (progress && !progress(reads[i].bytes)) stopped = true;
  });
  if (stopped) throw Interrupted();
  // TBB has ordered what its threads wrote before what follows; taking the lock says so to ThreadSanitizer too, which does
  // not see that.
  std::lock_guard lock(mutex);
  CHECK(done == reads.size());
}

void TensorReader::run(const TensorRead& job) const {
  switch (job.kind) {
    case TensorRead::Kind::copy: return read(job, job.to);
    case TensorRead::Kind::to_f32: {
      std::vector<std::byte> raw = read_all(job);
      leaf_table(IsaLevel::ref).dequantize[index(job.tensor->type)](raw.data(), reinterpret_cast<f32*>(job.to),
                                                                    job.tensor->weights());
      return;
    }
    case TensorRead::Kind::split_kv_b: return split_kv_b(job);
  }
}

void TensorReader::read(const TensorRead& job, std::byte* to) const {
  const GgufTensor& t = *job.tensor;
  int fd = files_[static_cast<size_t>(t.file)];
  for (i64 done = 0; done < job.bytes;) {
    ssize_t got = pread(fd, to + done, static_cast<size_t>(job.bytes - done), t.offset + job.first + done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0)
      fail("{}: cannot read tensor '{}' at offset {}: {}", gguf_.files()[static_cast<size_t>(t.file)].path, t.name,
           t.offset + job.first + done, got == 0 ? "the file ends there" : std::strerror(errno));
    done += got;
  }
  // These bytes live in our memory now; in the page cache they would only push out other things.
  posix_fadvise(fd, t.offset + job.first, job.bytes, POSIX_FADV_DONTNEED);
}

std::vector<std::byte> TensorReader::read_all(const TensorRead& job) const {
  std::vector<std::byte> raw(static_cast<size_t>(job.bytes));
  read(job, raw.data());
  return raw;
}

// kv_b has per head `nope` rows that make keys, then `v` rows that make values, each over the latent.
void TensorReader::split_kv_b(const TensorRead& job) const {
  std::vector<std::byte> raw = read_all(job);
  BlockType type = job.tensor->type;
  i64 row = row_bytes(type, h_.latent), heads = job.bytes / ((h_.nope + h_.v) * row);
  std::vector<f32> keys(static_cast<size_t>(h_.nope * h_.latent));
  for (i64 head = 0; head < heads; head++) {
    const std::byte* from = raw.data() + head * (h_.nope + h_.v) * row;
    leaf_table(IsaLevel::ref).dequantize[index(type)](from, keys.data(), h_.nope * h_.latent);
    std::memcpy(job.to_v + head * h_.v * row, from + h_.nope * row, static_cast<size_t>(h_.v * row));
    write_transposed(keys, derived_k_type(type), job.to, head);
  }
}

// keys [nope, latent] -> k_b of one head [latent, nope]
void TensorReader::write_transposed(const std::vector<f32>& keys, BlockType type, std::byte* k_b, i64 head) const {
  for (i64 r = 0; r < h_.latent; r++) {
    for (i64 d = 0; d < h_.nope; d++) {
      f32 value = keys[static_cast<size_t>(d * h_.latent + r)];
      i64 at = (head * h_.latent + r) * h_.nope + d;
      if (type == BlockType::F32)
        reinterpret_cast<f32*>(k_b)[at] = value;
      else
        reinterpret_cast<u16*>(k_b)[at] = f32_to_f16(value);
    }
  }
}

}  // namespace stoker
