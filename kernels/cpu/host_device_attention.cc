// Host devices' ops around attention: the CPU's own, in the stream's thread. Matrices in the packed order are put back into
// the file's first, all heads of one after the other.
#include <algorithm>
#include <span>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/host_device_work.h"
#include "kernels/format/packed.h"

namespace stoker::host_device {

namespace {

i64 float_bytes(i64 count) { return count * i64{sizeof(f32)}; }

// `heads` matrices, `stride` bytes apart.
struct Heads {
  Matrix first;
  i64 stride, heads;

  i64 bytes() const { return heads * matrix_bytes(first); }
};

// What has a cache each, until the stream's next op. Grows in the first calls of its thread.
template <class T>
std::span<const T> with_real_caches(const HostDeviceStream& host, std::span<const T> items) {
  thread_local std::vector<T> here;
  here.assign(items.begin(), items.end());
  for (T& item : here) item.cache = real(host, item.cache);
  return here;
}

// With the bytes of which the CPU computes: `memory` holds what had to be put into the file's order.
Heads in_file_order(const HostDeviceStream& host, Heads h, bool packed, std::vector<std::byte>& memory) {
  h.first.data = real(host, h.first.data);
  if (!packed || info(h.first.type).block_weights == 1) return h;
  const i64 head = matrix_bytes(h.first);
  memory.resize(std::max(memory.size(), static_cast<size_t>(h.bytes())));
  for (i64 i = 0; i < h.heads; i++)
    unpack_rows(h.first.type, h.first.rows, h.first.cols, static_cast<const std::byte*>(h.first.data) + i * h.stride,
                memory.data() + i * head);
  h.first.data = memory.data();
  h.stride = head;
  return h;
}

template <bool kPacked>
void matmul(Stream& stream, const MatmulArgs& args) {
  post(stream, args, matrix_bytes(args.weights), [](Stream& cpu, const HostDeviceStream& host, MatmulArgs a) {
    thread_local std::vector<std::byte> memory;  // grows to the largest matrix
    a.weights = in_file_order(host, {a.weights, 0, 1}, kPacked, memory).first;
    a.x.x = real(host, a.x.x);
    a.y = real(host, a.y);
    cpu::matmul(cpu, a);
  });
}

template <bool kPacked>
void head_matmul(Stream& stream, const HeadMatmulArgs& args) {
  post(stream, args, args.heads * matrix_bytes(args.weights), [](Stream& cpu, const HostDeviceStream& host, HeadMatmulArgs a) {
    thread_local std::vector<std::byte> memory;
    Heads heads = in_file_order(host, {a.weights, a.head_stride_bytes, a.heads}, kPacked, memory);
    a.weights = heads.first;
    a.head_stride_bytes = heads.stride;
    a.x.x = real(host, a.x.x);
    a.y = real(host, a.y);
    cpu::head_matmul(cpu, a);
  });
}

void rms_norm(Stream& stream, const RmsNormArgs& args) {
  post(stream, args, float_bytes(args.rows * args.cols), [](Stream& cpu, const HostDeviceStream& host, RmsNormArgs a) {
    a.x = real(host, a.x);
    a.weight = real(host, a.weight);
    a.y = real(host, a.y);
    a.residual = real(host, a.residual);
    a.y_q8_32 = real(host, a.y_q8_32);
    a.y_q8_256 = real(host, a.y_q8_256);
    cpu::rms_norm(cpu, a);
  });
}

void attention_rows(Stream& stream, const AttentionRowsArgs& args) {
  const i64 bytes = float_bytes(args.rows * (args.latent + args.rope + args.heads * args.rope));
  post(stream, args, bytes, [](Stream& cpu, const HostDeviceStream& host, AttentionRowsArgs a) {
    a.runs = with_real_caches(host, a.runs);
    a.kv = real(host, a.kv);
    a.kv_weight = real(host, a.kv_weight);
    a.q = real(host, a.q);
    a.positions = real(host, a.positions);
    a.frequencies = real(host, a.frequencies);
    cpu::attention_rows(cpu, a);
  });
}

void latent_attention(Stream& stream, const LatentAttentionArgs& args) {
  i64 positions = 0;
  for (const LatentAttentionArgs::Query& q : args.queries) positions += q.length;
  i64 bytes = positions * cache_bytes(args.cache_type, args.latent + args.rope);
  post(stream, args, bytes, [](Stream& cpu, const HostDeviceStream& host, LatentAttentionArgs a) {
    a.queries = with_real_caches(host, a.queries);
    a.q_latent = real(host, a.q_latent);
    a.q_rope = real(host, a.q_rope);
    a.out = real(host, a.out);
    a.out_quantized = real(host, a.out_quantized);
    a.scratch = real(host, a.scratch);
    cpu::latent_attention(cpu, a);
  });
}

template <bool kPacked>
void prompt_attention(Stream& stream, const PromptAttentionArgs& args) {
  i64 bytes = args.heads * (matrix_bytes(args.k_b) + matrix_bytes(args.v_b)) +
              (args.first + args.tokens) * cache_bytes(args.cache_type, args.latent + args.rope);
  post(stream, args, bytes, [](Stream& cpu, const HostDeviceStream& host, PromptAttentionArgs a) {
    thread_local std::vector<std::byte> keys, values;
    Heads k = in_file_order(host, {a.k_b, a.k_b_head_stride_bytes, a.heads}, kPacked, keys);
    Heads v = in_file_order(host, {a.v_b, a.v_b_head_stride_bytes, a.heads}, kPacked, values);
    a.k_b = k.first;
    a.k_b_head_stride_bytes = k.stride;
    a.v_b = v.first;
    a.v_b_head_stride_bytes = v.stride;
    a.q = real(host, a.q);
    a.cache = real(host, a.cache);
    a.out = real(host, a.out);
    a.scratch = real(host, a.scratch);
    cpu::prompt_attention(cpu, a);
  });
}

void add(Stream& stream, f32* y, const f32* x, i64 count) {
  struct Args {
    f32* y;
    const f32* x;
    i64 count;
  };
  post(stream, Args{y, x, count}, 2 * float_bytes(count), [](Stream& cpu, const HostDeviceStream& host, const Args& a) {
    cpu::add(cpu, real(host, a.y), real(host, a.x), a.count);
  });
}

// A stream's pool is its thread alone.
i64 attention_scratch_bytes(const AttentionShape& s) {
  return std::max(latent_attention_scratch_bytes(1, s.generated, s.heads, s.latent, s.rope, s.context),
                  prompt_attention_scratch_bytes(1, s.rows, s.nope, s.rope, s.latent, s.v));
}

}  // namespace

void add_attention(Ops& ops, bool packed) {
  ops.matmul = packed ? matmul<true> : matmul<false>;
  ops.head_matmul = packed ? head_matmul<true> : head_matmul<false>;
  ops.rms_norm = rms_norm;
  ops.attention_rows = attention_rows;
  ops.latent_attention = latent_attention;
  ops.prompt_attention = packed ? prompt_attention<true> : prompt_attention<false>;
  ops.add = add;
  ops.attention_scratch_bytes = attention_scratch_bytes;
}

}  // namespace stoker::host_device
