// Loading walks the model's tensors twice with the same code: once without memory, to learn the sizes, once with it, to
// note what goes where. Then all reads run in parallel. What is not chosen gets its shape and nothing else.
#include "runtime/weights.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>
#include <utility>

#include "kernels/base/error.h"
#include "scheduler/model_file/gguf.h"

namespace stoker {

namespace {

constexpr i64 kAlignment = 64;            // of every tensor in memory: one cache line
constexpr i64 kReadPiece = 16 * kMiB;     // large enough for the drive's full speed, small enough to share out
constexpr i64 kSplitPiece = 2 * kMiB;     // of kv_b: taking it apart costs more than reading it

// Places chosen tensors one after the other. With a null base it only counts.
class Layout {
 public:
  Layout(const Gguf& gguf, const Hparams& hparams, std::byte* base) : gguf_(gguf), h_(hparams), base_(base) {}

  std::vector<TensorRead> reads;  // none with a null base
  i64 used = 0;                   // of memory
  i64 read_bytes = 0;             // of files
  bool chosen = false;            // what comes now; the rest keeps its data

  void matrix(const std::string& name, i64 rows, i64 cols, Matrix& m) {
    const GgufTensor& t = expect(name, rows, cols);
    m = {chosen ? copy(t, 0, t.bytes) : m.data, t.type, rows, cols};
  }
  // `m` gets the chosen rows.
  void some_rows(const std::string& name, i64 rows, i64 cols, i64 first, Matrix& m) {
    const GgufTensor& t = expect(name, rows, cols);
    i64 row = row_bytes(t.type, cols);
    m = {chosen ? copy(t, first * row, m.rows * row) : m.data, t.type, m.rows, cols};
  }

  void floats(const std::string& name, i64 rows, i64 cols, Matrix& m) {
    const GgufTensor& t = expect(name, rows, cols);
    if (chosen) {
      std::byte* to = take(rows * cols * i64{sizeof(f32)});
      add({.kind = TensorRead::Kind::to_f32, .tensor = &t, .bytes = t.bytes, .to = to});
      m.data = to;
    }
    m = {m.data, BlockType::F32, rows, cols};
  }
  void vector(const std::string& name, i64 size, const f32*& v) {
    Matrix m{v, BlockType::F32, 1, size};
    floats(name, 1, size, m);
    v = static_cast<const f32*>(m.data);
  }

  // k_b and v_b of a layer, from the tensors of that name or else derived from kv_b.
  void latent_projections(const std::string& prefix, LayerWeights& w) {
    auto has = [&](const char* name) { return gguf_.find_tensor(prefix + name) != nullptr; };
    bool k = has("attn_k_b.weight"), v = has("attn_v_b.weight"), both = has("attn_kv_b.weight");
    // One of the two alone is as good as none, unless it tells which layout the file is meant to have.
    if ((k && v) || ((k || v) && !both)) {
      matrix(prefix + "attn_k_b.weight", h_.heads * h_.latent, h_.nope, w.k_b);
      matrix(prefix + "attn_v_b.weight", h_.heads * h_.v, h_.latent, w.v_b);
    } else {
      const GgufTensor& t = expect(prefix + "attn_kv_b.weight", h_.heads * (h_.nope + h_.v), h_.latent);
      w.k_b = {w.k_b.data, TensorReader::derived_k_type(t.type), 0, h_.nope};
      w.v_b = {w.v_b.data, t.type, 0, h_.latent};
      if (chosen) split(t, w);
    }
    w.k_b.rows = h_.latent;
    w.v_b.rows = h_.v;
    w.k_b_head_bytes = h_.latent * row_bytes(w.k_b.type, h_.nope);
    w.v_b_head_bytes = h_.v * row_bytes(w.v_b.type, h_.latent);
  }

 private:
  const GgufTensor& expect(const std::string& name, i64 rows, i64 cols) {
    const GgufTensor& t = gguf_.tensor(name);
    if (t.cols() != cols || t.rows() != rows)
      fail("{}: tensor '{}' has {} rows of {}, expected {} rows of {}",
           gguf_.files()[static_cast<size_t>(t.file)].path, name, t.rows(), t.cols(), rows, cols);
    return t;
  }

  std::byte* copy(const GgufTensor& t, i64 first, i64 bytes) {
    std::byte* to = take(bytes);
    for (i64 at = 0; at < bytes; at += kReadPiece)
      add({.tensor = &t, .first = first + at, .bytes = std::min(kReadPiece, bytes - at), .to = offset(to, at)});
    return to;
  }

  // Some heads at a time.
  void split(const GgufTensor& t, LayerWeights& w) {
    i64 k_head = h_.latent * row_bytes(w.k_b.type, h_.nope), v_head = h_.v * row_bytes(t.type, h_.latent);
    i64 head = (h_.nope + h_.v) * row_bytes(t.type, h_.latent), step = std::max<i64>(1, kSplitPiece / head);
    std::byte *to_k = take(h_.heads * k_head), *to_v = take(h_.heads * v_head);
    for (i64 i = 0; i < h_.heads; i += step)
      add({.kind = TensorRead::Kind::split_kv_b,
           .tensor = &t,
           .first = i * head,
           .bytes = std::min(step, h_.heads - i) * head,
           .to = offset(to_k, i * k_head),
           .to_v = offset(to_v, i * v_head)});
    w.k_b.data = to_k;
    w.v_b.data = to_v;
  }

  std::byte* take(i64 bytes) {
    i64 at = used;
    used += round_up(bytes, kAlignment);
    return offset(base_, at);
  }
  static std::byte* offset(std::byte* to, i64 bytes) { return to == nullptr ? nullptr : to + bytes; }
  void add(const TensorRead& read) {
    read_bytes += read.bytes;
    if (base_ != nullptr) reads.push_back(read);
  }

  const Gguf& gguf_;
  const Hparams& h_;
  std::byte* base_;
};

void place_attention(Layout& layout, const Hparams& h, const std::string& prefix, bool norms, bool matrices,
                     LayerWeights& w) {
  layout.chosen = norms;
  layout.vector(prefix + "attn_norm.weight", h.hidden, w.attention_norm);
  if (h.q_lora > 0) layout.vector(prefix + "attn_q_a_norm.weight", h.q_lora, w.q_a_norm);
  layout.vector(prefix + "attn_kv_a_norm.weight", h.latent, w.kv_a_norm);
  layout.chosen = matrices;
  i64 query_rows = h.heads * h.key();
  if (h.q_lora > 0) {
    layout.matrix(prefix + "attn_q_a.weight", h.q_lora, h.hidden, w.q_a);
    layout.matrix(prefix + "attn_q_b.weight", query_rows, h.q_lora, w.q);
  } else {
    layout.matrix(prefix + "attn_q.weight", query_rows, h.hidden, w.q);
  }
  layout.matrix(prefix + "attn_kv_a_mqa.weight", h.cache_row(), h.hidden, w.kv_a);
  layout.latent_projections(prefix, w);
  layout.matrix(prefix + "attn_output.weight", h.hidden, h.heads * h.v, w.attention_output);
}

void place_ffn(Layout& layout, const Gguf& gguf, const Hparams& h, i64 layer, const std::string& prefix, bool small,
               bool matrices, LayerWeights& w) {
  layout.chosen = small;
  layout.vector(prefix + "ffn_norm.weight", h.hidden, w.ffn_norm);
  bool moe = layer >= h.dense_layers;
  if (moe) {
    layout.floats(prefix + "ffn_gate_inp.weight", h.experts, h.hidden, w.router);
    std::string bias = prefix + "exp_probs_b.bias";
    if (gguf.find_tensor(bias) != nullptr) layout.vector(bias, h.experts, w.router_bias);
  }
  layout.chosen = matrices;
  i64 ffn = moe ? h.shared_experts * h.expert_ffn : h.dense_ffn;
  std::string suffix = moe ? "_shexp.weight" : ".weight";
  if (ffn == 0) return;
  layout.matrix(prefix + "ffn_gate" + suffix, ffn, h.hidden, w.gate);
  layout.matrix(prefix + "ffn_up" + suffix, ffn, h.hidden, w.up);
  layout.matrix(prefix + "ffn_down" + suffix, h.hidden, ffn, w.down);
}

std::string prefix(i64 layer) { return fmt::format("blk.{}.", layer); }

// All of it where devices have none.
std::vector<HeadPart> head_parts(const Hparams& h, const Homes& homes) {
  std::vector<HeadPart> parts;
  i64 first = 0;
  for (size_t d = 0; d < homes.head_rows.size(); d++) {
    if (homes.head_rows[d] == 0) continue;
    parts.push_back({.weights = {nullptr, BlockType::F32, homes.head_rows[d], h.hidden},
                     .first_row = first,
                     .device = static_cast<i32>(d)});
    first += homes.head_rows[d];
  }
  if (parts.empty()) parts.push_back({.weights = {nullptr, BlockType::F32, h.vocab, h.hidden}});
  return parts;
}

void place_head(Layout& layout, const Gguf& gguf, const Hparams& h, HeadPart& part) {
  bool tied = gguf.find_tensor("output.weight") == nullptr;
  layout.some_rows(tied ? "token_embd.weight" : "output.weight", h.vocab, h.hidden, part.first_row, part.weights);
}

// What has this device for its home; with -1 what has none, and all that is small.
void place_home(Layout& layout, const Gguf& gguf, const Hparams& h, const Homes& homes, i32 device,
                WeightPlaces& places) {
  bool small = device < 0;
  places.layers.resize(static_cast<size_t>(h.layers));
  for (i64 i = 0; i < h.layers; i++) {
    const LayerHome& home = homes.layers[static_cast<size_t>(i)];
    LayerWeights& w = places.layers[static_cast<size_t>(i)];
    bool attention = (home.attention ? home.device : -1) == device;
    place_attention(layout, h, prefix(i), small, attention, w);
    place_ffn(layout, gguf, h, i, prefix(i), small, home.device == device, w);
  }
  layout.chosen = small;
  layout.vector("output_norm.weight", h.hidden, places.output_norm);
  for (HeadPart& part : places.head) {
    layout.chosen = part.device == device;
    place_head(layout, gguf, h, part);
  }
}

struct Survey {
  WeightPlaces places;  // with types and sizes and no data
  i64 bytes = 0, file_bytes = 0;
};
Survey survey(const Gguf& gguf, const Hparams& h, const Homes& homes, i32 device) {
  Layout layout(gguf, h, nullptr);
  WeightPlaces places{.layers = {}, .head = head_parts(h, homes)};
  place_home(layout, gguf, h, homes, device, places);
  return {std::move(places), layout.used, layout.read_bytes};
}

Survey survey_all(const Gguf& gguf, const Hparams& h) {
  return survey(gguf, h, all_on_cpu(h.layers), -1);
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

i64 Weights::bytes_needed(const Gguf& gguf, const Hparams& hparams, const Homes& homes) {
  return survey(gguf, hparams, homes, -1).bytes;
}

i64 Weights::file_bytes(const Gguf& gguf, const Hparams& hparams) { return survey_all(gguf, hparams).file_bytes; }

WeightPlaces Weights::shapes(const Gguf& gguf, const Hparams& hparams) { return survey_all(gguf, hparams).places; }

Weights::Weights(const Gguf& gguf, const Hparams& hparams, const Homes& homes, const ReadProgress& progress)
    : gguf_(gguf), h_(hparams), homes_(homes), reader_(gguf, hparams) {
  const GgufTensor& table = gguf.tensor("token_embd.weight");
  if (table.cols() != hparams.hidden)
    fail("{}: tensor 'token_embd.weight' has rows of {}, expected {}",
         gguf.files()[static_cast<size_t>(table.file)].path, table.cols(), hparams.hidden);
  embedding_file_ = FileMapping(gguf.files()[static_cast<size_t>(table.file)].path, table.offset, table.bytes);
  embedding_ = {embedding_file_.data(), table.type, hparams.vocab, hparams.hidden};

  places_.head = head_parts(hparams, homes);
  Buffer memory(bytes_of(-1), "the resident weights");
  read_home(-1, memory, progress);
  memory_.push_back(std::move(memory));
}

void Weights::read_home(i32 device, const Buffer& memory, const ReadProgress& progress) {
  Layout layout(gguf_, h_, memory.data());
  WeightPlaces places = places_;
  place_home(layout, gguf_, h_, homes_, device, places);
  reader_.run(layout.reads, progress);
  // In place: passes that are under way look at them.
  places_.layers.resize(places.layers.size());
  std::copy(places.layers.begin(), places.layers.end(), places_.layers.begin());
  std::copy(places.head.begin(), places.head.end(), places_.head.begin());
  places_.output_norm = places.output_norm;
}

i64 Weights::bytes() const {
  auto add = [](i64 sum, const Buffer& b) { return sum + b.bytes(); };
  return std::accumulate(memory_.begin(), memory_.end(), i64{0}, add);
}

i64 Weights::bytes_of(i32 device) const { return survey(gguf_, h_, homes_, device).bytes; }

Status Weights::restore(i32 device, Buffer memory, const ReadProgress& progress) {
  try {
    memory_.reserve(memory_.size() + 1);  // what is read has a place once it is there
    read_home(device, memory, progress);
    memory_.push_back(std::move(memory));
  } catch (const Error& e) {
    return Status::failure(e.what());
  }
  return {};
}

// `place(layout)` twice: to learn the size, and with memory of that size.
template <class Place>
void Weights::read_into(Buffer& memory, const ReadProgress& progress, Place&& place) const {
  Layout counting(gguf_, h_, nullptr);
  place(counting);
  if (memory.bytes() < counting.used) {
    memory = Buffer();
    memory = Buffer(counting.used, "weights on their way to a device");
  }
  Layout layout(gguf_, h_, memory.data());
  place(layout);
  reader_.run(layout.reads, progress);
}

LayerWeights Weights::read_attention(LayerId layer, Buffer& memory, const ReadProgress& progress) const {
  LayerWeights w = layers()[static_cast<size_t>(layer.value)];
  read_into(memory, progress,
            [&](Layout& layout) { place_attention(layout, h_, prefix(layer.value), false, true, w); });
  return w;
}

LayerWeights Weights::read_ffn(LayerId layer, Buffer& memory, const ReadProgress& progress) const {
  LayerWeights w = layers()[static_cast<size_t>(layer.value)];
  read_into(memory, progress, [&](Layout& layout) {
    place_ffn(layout, gguf_, h_, layer.value, prefix(layer.value), false, true, w);
  });
  return w;
}

HeadPart Weights::read_head(i64 first_row, i64 rows, Buffer& memory, const ReadProgress& progress) const {
  HeadPart part{.weights = {nullptr, BlockType::F32, rows, h_.hidden}, .first_row = first_row};
  read_into(memory, progress, [&](Layout& layout) {
    layout.chosen = true;
    place_head(layout, gguf_, h_, part);
  });
  return part;
}

}  // namespace stoker
