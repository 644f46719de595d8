#include "runtime/device_heads.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/log.h"

namespace stoker {

namespace {

constexpr i64 kFloat = sizeof(f32);

// A half, so that both end together; the home also has what is there once.
i64 others(const Hparams& h) { return h.heads / 2; }

i64 cache_bytes_for(const Hparams& h, const DeviceAttention::Limits& l, i64 layers) {
  return layers * DeviceAttention::cache_bytes_needed(h, l);
}
i64 q_bytes(const Hparams& h) { return others(h) * h.key() * kFloat; }
i64 latent_bytes(const Hparams& h) { return others(h) * h.latent * kFloat; }

// Of one row at a time.
i64 scratch_bytes(const Ops& ops, const Hparams& h, const DeviceAttention::Limits& l) {
  return ops.attention_scratch_bytes({.rows = 1,
                                      .generated = 1,
                                      .context = l.context,
                                      .heads = others(h),
                                      .nope = h.nope,
                                      .rope = h.rope,
                                      .latent = h.latent,
                                      .v = h.v,
                                      .cache = l.cache});
}

}  // namespace

i64 DeviceHeads::bytes_needed(const Ops& ops, const Hparams& h, const DeviceAttention::Limits& l, i64 layers) {
  constexpr i64 kParts = 5, kAlignment = 256;
  return cache_bytes_for(h, l, layers) + q_bytes(h) + 2 * latent_bytes(h) + scratch_bytes(ops, h, l) + kParts * kAlignment;
}

DeviceHeads::DeviceHeads(Device& device, Device& home, const Ops& ops, IsaLevel level, const Hparams& h,
                         const DeviceAttention::Limits& l, i64 layers, i64 from)
    : device_(device),
      home_(home),
      ops_(ops),
      h_(h),
      limits_(l),
      from_(from),
      cache_(device, cache_bytes_for(h, l, layers), "a copy of another device's KV cache"),
      q_(device, q_bytes(h), "queries"),
      q_latent_(device, latent_bytes(h), "queries"),
      out_(device, latent_bytes(h), "sums of latents"),
      scratch_(device, scratch_bytes(ops, h, l), "attention"),
      known_(static_cast<size_t>(layers * l.sequences)),
      asked_(home.make_event()),
      done_(device.make_event()),
      device_stream_(device.make_stream()),
      stream_(*device_stream_, level) {}

i64 DeviceHeads::bytes() const {
  return cache_.bytes() + q_.bytes() + q_latent_.bytes() + out_.bytes() + scratch_.bytes();
}

i64 DeviceHeads::row_bytes() const { return stoker::cache_bytes(limits_.cache, h_.cache_row()); }

i64& DeviceHeads::known(SequenceId sequence) { return known_[static_cast<size_t>(place_ * limits_.sequences + sequence.value)]; }

void DeviceHeads::begin(i64 place, std::span<const SequenceRun> runs) {
  place_ = place;
  for (const SequenceRun& run : runs)
    known(run.sequence) = std::min({known(run.sequence), run.position, run.cache->shared()});
}

i64 DeviceHeads::heads(i64 length) const { return failed_ || length < from_ ? 0 : others(h_); }

void DeviceHeads::post(Stream& home, const Row& row) {
  CHECK(heads_ == 0);
  heads_ = heads(row.length);
  try {
    post_all(home, row);
  } catch (const Error& e) {  // by which an op says that its card cannot be used any more
    recorded_ = Status::failure(e.what());
  }
}

// What goes wrong here breaks the stream, so take() hears of it.
void DeviceHeads::post_all(Stream& home, const Row& row) {
  device_stream_->label("attention");
  static_cast<void>(home.device().record(*asked_));
  static_cast<void>(device_stream_->wait(*asked_));
  auto bring = [&](DevicePtr to, const void* from, i64 bytes) {
    static_cast<void>(device_.copy_from_peer(*device_stream_, to, home_, {reinterpret_cast<u64>(from)}, bytes));
  };
  const DevicePtr cache = cache_.data() + (place_ * limits_.sequences + row.run->sequence.value) * limits_.context * row_bytes();
  const i64 first = std::exchange(known(row.run->sequence), row.length);
  if (first < row.length) bring(cache + first * row_bytes(), row.run->latents + first * row_bytes(), (row.length - first) * row_bytes());
  bring(q_.data(), row.q, heads_ * h_.key() * kFloat);
  bring(q_latent_.data(), row.q_latent, heads_ * h_.latent * kFloat);
  query_ = {cache.as<const void>(), row.length};
  ops_.latent_attention(stream_, {.cache_type = limits_.cache,
                                  .queries = {&query_, 1},
                                  .q_latent = q_latent_.data().as<f32>(),
                                  .q_rope = q_.data().as<f32>() + h_.nope,
                                  .q_rope_token_stride = heads_ * h_.key(),
                                  .q_rope_head_stride = h_.key(),
                                  .out = out_.data().as<f32>(),
                                  .heads = heads_,
                                  .latent = h_.latent,
                                  .rope = h_.rope,
                                  .scale = h_.attention_scale,
                                  .scratch = scratch_.data().as<std::byte>(),
                                  .scratch_bytes = scratch_.bytes()});
  recorded_ = device_stream_->record(*done_);
}

// Here the engine's thread waits, and not the home's stream: one device that is lost does not take the other along.
bool DeviceHeads::take(Stream& home, f32* out) {
  const i64 heads = std::exchange(heads_, 0);
  const Status status = recorded_.ok() ? done_->wait() : recorded_;
  if (!status.ok()) {
    failed_ = true;
    log_warning("{}: {}; each layer's heads are its home's from now on", device_.properties().id, status.message());
    return false;
  }
  static_cast<void>(home_.copy_from_peer(home.device(), {reinterpret_cast<u64>(out)}, device_, out_.data(), heads * h_.latent * kFloat));
  return true;
}

}  // namespace stoker
