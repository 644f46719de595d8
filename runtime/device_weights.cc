#include "runtime/device_weights.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "kernels/base/buffer.h"
#include "kernels/format/packed.h"

namespace stoker {

namespace {

constexpr i64 kAlignment = 256;
constexpr i64 kStagingBytes = 4 * kMiB;
constexpr i64 kHeadPiece = 4 * kMiB;  // of the head, read at a time

i64 file_bytes(const Matrix& m) { return m.rows * row_bytes(m.type, m.cols); }

// In either order, which is not known before there is a device. Matrices of heads lie one after the other.
i64 room(const Matrix& m, i64 heads = 1) {
  return m.rows == 0 ? 0 : round_up(heads * std::max(file_bytes(m), packed_bytes(m.type, m.rows, m.cols)), kAlignment);
}
i64 vector_room(i64 size) { return round_up(size * i64{sizeof(f32)}, kAlignment); }

i64 heads(const LayerWeights& w) { return w.attention_output.cols / w.v_b.rows; }

// Bytes of ascending places, gathered in pinned memory: a copy for each piece of it, not for each matrix.
class Upload {
 public:
  Upload(Device& device, DevicePtr to)
      : to_(to), staging_(device, kStagingBytes, "weights for a device"), stream_(device.make_stream()) {}

  void put(i64 at, const void* data, i64 bytes) {
    for (i64 done = 0; done < bytes;) {
      if (at + done >= begin_ + kStagingBytes) flush(at + done);
      i64 n = std::min(bytes - done, begin_ + kStagingBytes - (at + done));
      std::memcpy(staging_.as<std::byte>() + (at + done - begin_), static_cast<const std::byte*>(data) + done,
                  static_cast<size_t>(n));
      done += n;
      end_ = at + done;
    }
  }
  // What is put next begins at `next` or later.
  void flush(i64 next) {
    if (end_ > begin_) {
      Status status = stream_->copy_to_device(to_ + begin_, staging_.as<std::byte>(), end_ - begin_);
      if (status.ok()) status = stream_->synchronize();
      if (!status.ok()) throw Error(status.message());
    }
    begin_ = end_ = next;
  }

 private:
  DevicePtr to_;
  PinnedBuffer staging_;
  std::unique_ptr<DeviceStream> stream_;
  i64 begin_ = 0, end_ = 0;  // of what staging_ holds
};

// Puts weights one after the other into a device's memory.
class Placing {
 public:
  Placing(Device& device, DevicePtr memory) : memory_(memory), upload_(device, memory), packed_(device.properties().packed) {}

  ResidentFfn ffn(const LayerWeights& w) { return {.gate = matrix(w.gate), .up = matrix(w.up), .down = matrix(w.down)}; }

  ResidentRouter router(const LayerWeights& w) {
    if (!w.is_moe()) return {};
    return {.norm = vector(w.ffn_norm, w.router.cols),
            .matrix = matrix(w.router),
            .bias = w.router_bias != nullptr ? vector(w.router_bias, w.router.rows) : nullptr};
  }

  LayerWeights attention(const LayerWeights& w) {
    LayerWeights there;
    there.attention_norm = vector(w.attention_norm, w.kv_a.cols);
    there.q_a = matrix(w.q_a);
    there.q_a_norm = vector(w.q_a_norm, w.q_a.rows);
    there.q = matrix(w.q);
    there.kv_a = matrix(w.kv_a);
    there.kv_a_norm = vector(w.kv_a_norm, w.k_b.rows);
    there.k_b = matrix(w.k_b, heads(w), w.k_b_head_bytes);
    there.k_b_head_bytes = bytes_there(w.k_b);
    there.v_b = matrix(w.v_b, heads(w), w.v_b_head_bytes);
    there.v_b_head_bytes = bytes_there(w.v_b);
    there.attention_output = matrix(w.attention_output);
    return there;
  }

  void finish() { upload_.flush(at_); }

  // Piece by piece: whole tiles, which lie one after the other in either order.
  HeadPart head(const HeadPart& part, const Weights& weights, Buffer& read, const ReadProgress& progress) {
    const Matrix& all = part.weights;
    const i64 row = row_bytes(all.type, all.cols), rows = round_up(div_up(kHeadPiece, row), kHeadTileRows);
    for (i64 r = 0; r < all.rows; r += rows)
      put(at_ + r * row, weights.read_head(part.first_row + r, std::min(rows, all.rows - r), read, progress).weights);
    return {place(all, 1), part.first_row, part.device};
  }

 private:
  Matrix matrix(const Matrix& m, i64 heads = 1, i64 head_bytes = 0) {
    for (i64 h = 0; h < heads && m.rows > 0; h++) put(at_ + h * bytes_there(m), m, h * head_bytes);
    return place(m, heads);
  }

  // `m`, beginning so many bytes behind its data, to `at`.
  void put(i64 at, const Matrix& m, i64 offset = 0) {
    const std::byte* from = static_cast<const std::byte*>(m.data) + offset;
    if (packs(m)) {
      in_order_.resize(static_cast<size_t>(bytes_there(m)));
      pack_rows(m.type, m.rows, m.cols, from, in_order_.data());
      from = in_order_.data();
    }
    upload_.put(at, from, bytes_there(m));
  }

  Matrix place(const Matrix& m, i64 heads) {
    Matrix there = m;
    there.data = (memory_ + at_).as<const void>();
    at_ += room(m, heads);
    return there;
  }

  bool packs(const Matrix& m) const { return packed_ && info(m.type).block_weights > 1; }
  i64 bytes_there(const Matrix& m) const { return packs(m) ? packed_bytes(m.type, m.rows, m.cols) : file_bytes(m); }

  const f32* vector(const f32* values, i64 size) {
    if (size == 0) return nullptr;
    upload_.put(at_, values, size * i64{sizeof(f32)});
    const f32* there = (memory_ + at_).as<const f32>();
    at_ += vector_room(size);
    return there;
  }

  DevicePtr memory_;
  Upload upload_;
  bool packed_;
  std::vector<std::byte> in_order_;
  i64 at_ = 0;
};

// Without rows: none.
HeadPart head_part(const Weights& weights, i32 device) {
  for (const HeadPart& part : weights.head())
    if (part.device == device) return part;
  return {};
}

}  // namespace

// Shapes do not say whether there is a bias.
i64 DeviceWeights::ffn_bytes(const LayerWeights& w) {
  i64 router = w.is_moe() ? vector_room(w.router.cols) + room(w.router) + vector_room(w.router.rows) : 0;
  return router + room(w.gate) + room(w.up) + room(w.down);
}

i64 DeviceWeights::attention_bytes(const LayerWeights& w) {
  return vector_room(w.kv_a.cols) + room(w.q_a) + vector_room(w.q_a.rows) + room(w.q) + room(w.kv_a) + vector_room(w.k_b.rows) +
         room(w.k_b, heads(w)) + room(w.v_b, heads(w)) + room(w.attention_output);
}

DeviceWeights::DeviceWeights(Device& device, const Weights& weights, const Homes& homes, i32 index,
                             const ReadProgress& progress)
    : ffns_(weights.layers().size()), routers_(weights.layers().size()), attention_(weights.layers().size()) {
  std::span<const LayerWeights> layers = weights.layers();
  HeadPart head = head_part(weights, index);
  i64 bytes = room(head.weights);
  for (size_t l = 0; l < layers.size(); l++)
    if (homes.layers[l].device == index) bytes += ffn_bytes(layers[l]) + (homes.layers[l].attention ? attention_bytes(layers[l]) : 0);
  if (bytes == 0) return;
  memory_ = DeviceBuffer(device, bytes, "resident weights");
  Placing placing(device, memory_.data());
  Buffer read;
  for (size_t l = 0; l < layers.size(); l++) {
    if (homes.layers[l].device != index) continue;
    LayerId layer(static_cast<i32>(l));
    if (homes.layers[l].attention) attention_[l] = placing.attention(weights.read_attention(layer, read, progress));
    routers_[l] = placing.router(layers[l]);
    ffns_[l] = placing.ffn(weights.read_ffn(layer, read, progress));
  }
  if (head.weights.rows > 0) head_ = placing.head(head, weights, read, progress);
  placing.finish();
}

i64 DeviceWeights::ffn_layers() const {
  return std::count_if(ffns_.begin(), ffns_.end(), [](const ResidentFfn& f) { return f.gate.rows > 0; });
}

i64 DeviceWeights::attention_layers() const {
  return std::count_if(attention_.begin(), attention_.end(), [](const LayerWeights& w) { return w.kv_a.rows > 0; });
}

}  // namespace stoker
