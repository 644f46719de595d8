// Loading walks the model's tensors twice with the same code: once without memory, to learn the sizes, once with it, to
// note what goes where. Then all reads run in parallel. A tensor is copied as it is, turned into floats (norms, router),
// or, for kv_b, split into the absorbed form: k_b transposed per head (DeepSeek-V2, arXiv 2405.04434, appendix C) and v_b.
#include "runtime/weights.h"

#include <fcntl.h>
#include <sys/mman.h>
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

constexpr i64 kAlignment = 64;            // of every tensor in memory: one cache line
constexpr i64 kReadPiece = 16 * kMiB;     // large enough for the drive's full speed, small enough to share out

struct LoadJob {
  enum class Kind { copy, to_f32, split_kv_b } kind = Kind::copy;
  const GgufTensor* tensor = nullptr;
  i64 first = 0, bytes = 0;    // part of the tensor's data (all of it unless Kind::copy)
  std::byte* to = nullptr;     // copy, to_f32; k_b of split_kv_b
  std::byte* to_v = nullptr;   // v_b of split_kv_b
};

// Places tensors one after the other. With a null base it only counts.
class Layout {
 public:
  Layout(const Gguf& gguf, const Hparams& hparams, std::byte* base) : gguf_(gguf), h_(hparams), base_(base) {}

  std::vector<LoadJob> jobs;
  i64 used = 0;

  Matrix matrix(const std::string& name, i64 rows, i64 cols) {
    const GgufTensor& t = expect(name, rows, cols);
    std::byte* to = take(t.bytes);
    for (i64 at = 0; at < t.bytes; at += kReadPiece)
      jobs.push_back({.tensor = &t, .first = at, .bytes = std::min(kReadPiece, t.bytes - at), .to = to + at});
    return {to, t.type, rows, cols};
  }

  Matrix floats(const std::string& name, i64 rows, i64 cols) {
    const GgufTensor& t = expect(name, rows, cols);
    std::byte* to = take(rows * cols * i64{sizeof(f32)});
    jobs.push_back({.kind = LoadJob::Kind::to_f32, .tensor = &t, .bytes = t.bytes, .to = to});
    return {to, BlockType::F32, rows, cols};
  }
  const f32* vector(const std::string& name, i64 size) {
    return static_cast<const f32*>(floats(name, 1, size).data);
  }

  // k_b and v_b of a layer, from the tensors of that name or else derived from kv_b.
  void latent_projections(const std::string& prefix, LayerWeights& w) {
    auto has = [&](const char* name) { return gguf_.find_tensor(prefix + name) != nullptr; };
    bool k = has("attn_k_b.weight"), v = has("attn_v_b.weight"), both = has("attn_kv_b.weight");
    // One of the two alone is as good as none, unless it tells which layout the file is meant to have.
    if ((k && v) || ((k || v) && !both)) {
      w.k_b = matrix(prefix + "attn_k_b.weight", h_.heads * h_.latent, h_.nope);
      w.v_b = matrix(prefix + "attn_v_b.weight", h_.heads * h_.v, h_.latent);
    } else {
      const GgufTensor& t = expect(prefix + "attn_kv_b.weight", h_.heads * (h_.nope + h_.v), h_.latent);
      BlockType k_type = derived_k_type(t.type);
      std::byte* to_k = take(h_.heads * h_.latent * row_bytes(k_type, h_.nope));
      std::byte* to_v = take(h_.heads * h_.v * row_bytes(t.type, h_.latent));
      jobs.push_back({.kind = LoadJob::Kind::split_kv_b, .tensor = &t, .bytes = t.bytes, .to = to_k, .to_v = to_v});
      w.k_b = {to_k, k_type, 0, h_.nope};
      w.v_b = {to_v, t.type, 0, h_.latent};
    }
    w.k_b.rows = h_.latent;
    w.v_b.rows = h_.v;
    w.k_b_head_bytes = h_.latent * row_bytes(w.k_b.type, h_.nope);
    w.v_b_head_bytes = h_.v * row_bytes(w.v_b.type, h_.latent);
  }

  // Transposing breaks blocks up. f16 keeps more bits than any block format has; float stays float.
  static BlockType derived_k_type(BlockType kv_b) {
    return kv_b == BlockType::F32 || kv_b == BlockType::BF16 ? BlockType::F32 : BlockType::F16;
  }

 private:
  const GgufTensor& expect(const std::string& name, i64 rows, i64 cols) {
    const GgufTensor& t = gguf_.tensor(name);
    if (t.cols() != cols || t.rows() != rows)
      fail("{}: tensor '{}' has {} rows of {}, expected {} rows of {}",
           gguf_.files()[static_cast<size_t>(t.file)].path, name, t.rows(), t.cols(), rows, cols);
    return t;
  }

  std::byte* take(i64 bytes) {
    i64 at = used;
    used += round_up(bytes, kAlignment);
    return base_ == nullptr ? nullptr : base_ + at;
  }

  const Gguf& gguf_;
  const Hparams& h_;
  std::byte* base_;
};

void place_attention(Layout& layout, const Hparams& h, const std::string& prefix, LayerWeights& w) {
  w.attention_norm = layout.vector(prefix + "attn_norm.weight", h.hidden);
  i64 query_rows = h.heads * h.key();
  if (h.q_lora > 0) {
    w.q_a = layout.matrix(prefix + "attn_q_a.weight", h.q_lora, h.hidden);
    w.q_a_norm = layout.vector(prefix + "attn_q_a_norm.weight", h.q_lora);
    w.q = layout.matrix(prefix + "attn_q_b.weight", query_rows, h.q_lora);
  } else {
    w.q = layout.matrix(prefix + "attn_q.weight", query_rows, h.hidden);
  }
  w.kv_a = layout.matrix(prefix + "attn_kv_a_mqa.weight", h.cache_row(), h.hidden);
  w.kv_a_norm = layout.vector(prefix + "attn_kv_a_norm.weight", h.latent);
  layout.latent_projections(prefix, w);
  w.attention_output = layout.matrix(prefix + "attn_output.weight", h.hidden, h.heads * h.v);
}

void place_ffn(Layout& layout, const Gguf& gguf, const Hparams& h, i64 layer, const std::string& prefix,
               LayerWeights& w) {
  w.ffn_norm = layout.vector(prefix + "ffn_norm.weight", h.hidden);
  bool moe = layer >= h.dense_layers;
  i64 ffn = moe ? h.shared_experts * h.expert_ffn : h.dense_ffn;
  std::string suffix = moe ? "_shexp.weight" : ".weight";
  if (ffn > 0) {
    w.gate = layout.matrix(prefix + "ffn_gate" + suffix, ffn, h.hidden);
    w.up = layout.matrix(prefix + "ffn_up" + suffix, ffn, h.hidden);
    w.down = layout.matrix(prefix + "ffn_down" + suffix, h.hidden, ffn);
  }
  if (!moe) return;
  w.router = layout.floats(prefix + "ffn_gate_inp.weight", h.experts, h.hidden);
  std::string bias = prefix + "exp_probs_b.bias";
  if (gguf.find_tensor(bias) != nullptr) w.router_bias = layout.vector(bias, h.experts);
}

struct Placed {
  std::vector<LayerWeights> layers;
  const f32* output_norm = nullptr;
  Matrix output;
};

Placed place_all(Layout& layout, const Gguf& gguf, const Hparams& h) {
  Placed placed;
  for (i64 i = 0; i < h.layers; i++) {
    LayerWeights w;
    std::string prefix = fmt::format("blk.{}.", i);
    place_attention(layout, h, prefix, w);
    place_ffn(layout, gguf, h, i, prefix, w);
    placed.layers.push_back(w);
  }
  placed.output_norm = layout.vector("output_norm.weight", h.hidden);
  bool tied = gguf.find_tensor("output.weight") == nullptr;
  placed.output = layout.matrix(tied ? "token_embd.weight" : "output.weight", h.vocab, h.hidden);
  return placed;
}

// Runs the jobs: open files, pread, convert.
class JobRunner {
 public:
  JobRunner(const Gguf& gguf, const Hparams& h) : gguf_(gguf), h_(h) {
    for (const GgufFileInfo& file : gguf.files()) {
      int fd = open(file.path.c_str(), O_RDONLY | O_CLOEXEC);
      if (fd < 0) fail("{}: {}", file.path, std::strerror(errno));
      files_.push_back(fd);
    }
  }
  ~JobRunner() {
    for (int fd : files_) close(fd);
  }
  JobRunner(const JobRunner&) = delete;
  JobRunner& operator=(const JobRunner&) = delete;

  void run(const LoadJob& job) const {
    switch (job.kind) {
      case LoadJob::Kind::copy: return read(job, job.to);
      case LoadJob::Kind::to_f32: {
        std::vector<std::byte> raw = read_all(job);
        leaf_table(IsaLevel::ref).dequantize[index(job.tensor->type)](raw.data(), reinterpret_cast<f32*>(job.to),
                                                                      job.tensor->weights());
        return;
      }
      case LoadJob::Kind::split_kv_b: return split_kv_b(job);
    }
  }

 private:
  static size_t index(BlockType type) { return static_cast<size_t>(type); }

  void read(const LoadJob& job, std::byte* to) const {
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

  std::vector<std::byte> read_all(const LoadJob& job) const {
    std::vector<std::byte> raw(static_cast<size_t>(job.bytes));
    read(job, raw.data());
    return raw;
  }

  // kv_b has per head `nope` rows that make keys, then `v` rows that make values, each over the latent.
  void split_kv_b(const LoadJob& job) const {
    std::vector<std::byte> raw = read_all(job);
    BlockType type = job.tensor->type;
    i64 row = row_bytes(type, h_.latent);
    std::vector<f32> keys(static_cast<size_t>(h_.nope * h_.latent));
    for (i64 head = 0; head < h_.heads; head++) {
      const std::byte* from = raw.data() + head * (h_.nope + h_.v) * row;
      leaf_table(IsaLevel::ref).dequantize[index(type)](from, keys.data(), h_.nope * h_.latent);
      std::memcpy(job.to_v + head * h_.v * row, from + h_.nope * row, static_cast<size_t>(h_.v * row));
      write_transposed(keys, Layout::derived_k_type(type), job.to, head);
    }
  }

  // keys [nope, latent] -> k_b of one head [latent, nope]
  void write_transposed(const std::vector<f32>& keys, BlockType type, std::byte* k_b, i64 head) const {
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

  const Gguf& gguf_;
  const Hparams& h_;
  std::vector<int> files_;
};

void run_jobs(const JobRunner& runner, const std::vector<LoadJob>& jobs,
              const std::function<bool(i64, i64)>& progress) {
  i64 total = 0;
  for (const LoadJob& job : jobs) total += job.bytes;
  std::mutex mutex;
  i64 done = 0;
  std::atomic<bool> stopped{false};
  tbb::parallel_for(size_t{0}, jobs.size(), [&](size_t i) {
    if (stopped) return;
    runner.run(jobs[i]);
    std::lock_guard lock(mutex);
    done += jobs[i].bytes;
    if (progress && !progress(done, total)) stopped = true;
  });
  if (stopped) throw Interrupted();
  // TBB has ordered what its threads wrote before what follows; taking the lock says so to ThreadSanitizer too, which does
  // not see that.
  std::lock_guard lock(mutex);
  CHECK(done == total);
}

}  // namespace

FileMapping::FileMapping(const std::string& path, i64 offset, i64 bytes) {
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail("{}: {}", path, std::strerror(errno));
  i64 start = round_down(offset, sysconf(_SC_PAGESIZE));
  mapped_ = bytes + (offset - start);
  base_ = mmap(nullptr, static_cast<size_t>(mapped_), PROT_READ, MAP_SHARED, fd, start);
  int error = errno;
  close(fd);
  if (base_ == MAP_FAILED) {
    base_ = nullptr;
    fail("{}: cannot map the embedding table: {}", path, std::strerror(error));
  }
  madvise(base_, static_cast<size_t>(mapped_), MADV_RANDOM);  // one row per token: no read-ahead
  data_ = static_cast<const std::byte*>(base_) + (offset - start);
}

FileMapping::~FileMapping() {
  if (base_ != nullptr) munmap(base_, static_cast<size_t>(mapped_));
}

FileMapping::FileMapping(FileMapping&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)),
      mapped_(std::exchange(other.mapped_, 0)),
      data_(std::exchange(other.data_, nullptr)) {}

FileMapping& FileMapping::operator=(FileMapping&& other) noexcept {
  std::swap(base_, other.base_);
  std::swap(mapped_, other.mapped_);
  std::swap(data_, other.data_);
  return *this;
}

i64 Weights::bytes_needed(const Gguf& gguf, const Hparams& hparams) {
  Layout layout(gguf, hparams, nullptr);
  place_all(layout, gguf, hparams);
  return layout.used;
}

Weights::Shapes Weights::shapes(const Gguf& gguf, const Hparams& hparams) {
  Layout layout(gguf, hparams, nullptr);
  Placed placed = place_all(layout, gguf, hparams);
  return {std::move(placed.layers), placed.output};
}

Weights::Weights(const Gguf& gguf, const Hparams& hparams, const std::function<bool(i64, i64)>& progress)
    : memory_(bytes_needed(gguf, hparams), "the resident weights") {
  const GgufTensor& table = gguf.tensor("token_embd.weight");
  if (table.cols() != hparams.hidden)
    fail("{}: tensor 'token_embd.weight' has rows of {}, expected {}",
         gguf.files()[static_cast<size_t>(table.file)].path, table.cols(), hparams.hidden);
  embedding_file_ = FileMapping(gguf.files()[static_cast<size_t>(table.file)].path, table.offset, table.bytes);
  embedding_ = {embedding_file_.data(), table.type, hparams.vocab, hparams.hidden};

  Layout layout(gguf, hparams, memory_.data());
  Placed placed = place_all(layout, gguf, hparams);
  layers_ = std::move(placed.layers);
  output_norm_ = placed.output_norm;
  output_ = placed.output;
  run_jobs(JobRunner(gguf, hparams), layout.jobs, progress);
}

}  // namespace stoker
