#include "kernels/cpu/host_device_ops.h"

#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/host_device_work.h"
#include "kernels/format/packed.h"

namespace stoker {

namespace {

using host_device::host_stream, host_device::matrix_bytes, host_device::post, host_device::real;

i64 work_bytes(const ExpertWork& w) { return matrix_bytes(w.gate) + matrix_bytes(w.up) + matrix_bytes(w.down); }

void quantize(Stream& stream, const QuantizeArgs& args) {
  post(stream, args, args.rows * args.cols * i64{sizeof(f32)}, [](Stream& cpu, const HostDeviceStream& host, QuantizeArgs a) {
    a.x = real(host, a.x);
    a.out = real(host, a.out);
    cpu::quantize(cpu, a);
  });
}

ExpertFfnArgs real(const HostDeviceStream& host, ExpertFfnArgs args) {
  args.x = real(host, args.x);
  args.x_q8_32 = real(host, args.x_q8_32);
  args.x_q8_256 = real(host, args.x_q8_256);
  args.out = real(host, args.out);
  args.scratch = real(host, args.scratch);
  return args;
}

ExpertWork real(const HostDeviceStream& host, ExpertWork w) {
  for (Matrix* m : {&w.gate, &w.up, &w.down}) m->data = real(host, m->data);
  w.rows = real(host, w.rows);
  w.out_rows = real(host, w.out_rows);
  return w;
}

// compute(stream of the CPU, host stream, arguments with the CPU's addresses except those within `work`), in the stream's
// thread.
template <class Compute>
void post_experts(Stream& stream, const ExpertFfnArgs& args, Compute compute) {
  i64 bytes = 0;
  for (const ExpertWork& w : args.work) bytes += work_bytes(w);
  post(stream, args, bytes, [compute](Stream& cpu, const HostDeviceStream& host, const ExpertFfnArgs& there) {
    compute(cpu, host, real(host, there));
  });
}

void expert_ffn(Stream& stream, const ExpertFfnArgs& args) {
  post_experts(stream, args, [](Stream& cpu, const HostDeviceStream& host, ExpertFfnArgs here) {
    // Grows in the first calls of a stream's thread and is then as long as a layer's list can be.
    thread_local std::vector<ExpertWork> list;
    list.clear();
    for (const ExpertWork& w : here.work) list.push_back(real(host, w));
    here.work = list;
    cpu::expert_ffn(cpu, here);
  });
}

// In the file's order, at `to`. Advances that.
Matrix unpacked(const Matrix& m, std::byte*& to) {
  std::byte* at = std::exchange(to, to + matrix_bytes(m));
  unpack_rows(m.type, m.rows, m.cols, static_cast<const std::byte*>(m.data), at);
  return {at, m.type, m.rows, m.cols};
}

// One expert after the other, so that there need be room for only one of them in the file's order.
void packed_expert_ffn(Stream& stream, const ExpertFfnArgs& args) {
  post_experts(stream, args, [](Stream& cpu, const HostDeviceStream& host, ExpertFfnArgs here) {
    thread_local std::vector<std::byte> matrices;  // grows to the largest expert
    for (const ExpertWork& packed : std::exchange(here.work, {})) {
      ExpertWork w = real(host, packed);
      matrices.resize(std::max(matrices.size(), static_cast<size_t>(work_bytes(w))));
      std::byte* to = matrices.data();
      for (Matrix* m : {&w.gate, &w.up, &w.down}) *m = unpacked(*m, to);
      here.work = {&w, 1};
      cpu::expert_ffn(cpu, here);
    }
  });
}

void route(Stream& stream, const RouteArgs& args) {
  post(stream, args, args.tokens * args.experts * i64{sizeof(f32)}, [](Stream& cpu, const HostDeviceStream& host, RouteArgs a) {
    a.logits = real(host, a.logits);
    a.bias = real(host, a.bias);
    a.ids = real(host, a.ids);
    a.weights = real(host, a.weights);
    cpu::route(cpu, a);
  });
}

// The rows over the link, as a card's writes go, then the word.
void hand_over(Stream& stream, const HandOverArgs& args) {
  HostDeviceStream& host = host_stream(stream);
  for (const HandOverArgs::Piece& p : std::span(args.pieces).first(static_cast<size_t>(args.count)))
    static_cast<void>(host.copy_to_host(p.to, {reinterpret_cast<u64>(p.from)}, p.bytes));
  HostWork raise([&host, flag = args.flag, value = args.value] {
    std::atomic_ref(*real(host, flag)).store(value, std::memory_order_release);
  });
  host.post(raise, 0);
}

using Reorder = void (*)(BlockType type, i64 rows, i64 cols, const std::byte* from, std::byte* to);

void post_reorder(Stream& stream, const ReorderArgs& args, Reorder reorder) {
  HostDeviceStream& host = host_stream(stream);
  HostWork work([&host, args, reorder] {
    reorder(args.type, args.rows, args.cols, static_cast<const std::byte*>(real(host, args.from)),
            static_cast<std::byte*>(real(host, args.to)));
  });
  host.post(work, 2 * args.rows * row_bytes(args.type, args.cols));  // read and written
}

void pack(Stream& stream, const ReorderArgs& args) { post_reorder(stream, args, pack_rows); }
void unpack(Stream& stream, const ReorderArgs& args) { post_reorder(stream, args, unpack_rows); }

Ops host_ops(const char* name, bool packed) {
  Ops ops{};
  ops.name = name;
  ops.quantize = quantize;
  ops.expert_ffn = packed ? packed_expert_ffn : expert_ffn;
  ops.route = route;
  ops.hand_over = hand_over;
  host_device::add_attention(ops, packed);
  if (!packed) return ops;
  ops.pack = pack;
  ops.unpack = unpack;
  return ops;
}

}  // namespace

const Ops& host_device_ops() {
  static const Ops kOps = host_ops("host device", false);
  return kOps;
}

const Ops& packed_host_device_ops() {
  static const Ops kOps = host_ops("host device, packed", true);
  return kOps;
}

}  // namespace stoker
