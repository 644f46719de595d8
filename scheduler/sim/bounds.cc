#include "scheduler/sim/bounds.h"

#include <algorithm>
#include <cmath>

#include "scheduler/sim/simulator.h"

namespace stoker {

i64 attention_ns(const SimMachine& m, const SimResident& r) {
  return m.attention_gflops > 0 ? std::llround(static_cast<f64>(r.attention_flops) / m.attention_gflops) : 0;
}

f64 attention_ns(const SimMachine& m, const SimResident& r, const SimGpu& home) {
  const f64 read = static_cast<f64>(r.kv_layer_bytes()) / home.gb_per_second;
  const f64 multiplied = home.attention_tflops > 0 ? static_cast<f64>(r.attention_flops) / (home.attention_tflops * 1e3) : 0;
  if (!r.heads_shared) return std::max(read, multiplied);
  return std::max(read, multiplied / 2) + static_cast<f64>(r.half_heads_bytes) / home.link_gb_per_second + m.layer_overhead_us * 1e3;
}

namespace {

// One token outside its routed experts, nothing read.
struct Fixed {
  f64 ns = 0;          // what cores and GPUs wait for each other with
  f64 shared_work = 0; // of GPUs beside the experts, in bytes at the speed at which they compute those
  f64 dram_bytes = 0;  // that the cores read
};

// Attention of a layer, there or on the cores, which multiply while they go through the cache where that takes longer.
void add_attention(const SimMachine& m, const SimResident& r, const LayerHome& home, Fixed& fixed) {
  if (home.attention) {
    const SimGpu& gpu = m.gpus[static_cast<size_t>(home.device)];
    fixed.ns += static_cast<f64>(r.attention_bytes) / gpu.gb_per_second + attention_ns(m, r, gpu) +
                static_cast<f64>(r.hidden_bytes) / gpu.link_gb_per_second;
    return;
  }
  const bool multiplies = m.attention_gflops > 0;
  f64 read = static_cast<f64>(r.attention_bytes + (multiplies ? 0 : r.kv_layer_bytes()));
  fixed.ns += read / m.compute_speed(r.type) + static_cast<f64>(attention_ns(m, r));
  fixed.dram_bytes += static_cast<f64>(r.attention_bytes + r.kv_layer_bytes());
}

void add_on_cores(const SimMachine& m, const SimResident& r, i64 bytes, Fixed& fixed) {
  fixed.ns += static_cast<f64>(bytes) / m.compute_speed(r.type);
  fixed.dram_bytes += static_cast<f64>(bytes);
}

void add_ffn(const SimMachine& m, const SimResident& r, bool dense, const LayerHome& home, Fixed& fixed) {
  i64 bytes = dense ? r.dense_ffn_bytes : r.shared_bytes;
  if (home.device < 0) return add_on_cores(m, r, bytes + (dense ? 0 : r.router_bytes), fixed);
  const SimGpu& gpu = m.gpus[static_cast<size_t>(home.device)];
  fixed.ns += static_cast<f64>(r.hidden_bytes) / gpu.link_gb_per_second;
  f64 ns = static_cast<f64>(bytes) / gpu.gb_per_second;
  if (dense)
    fixed.ns += ns;
  else {
    fixed.ns += static_cast<f64>(r.router_bytes) / gpu.gb_per_second;
    fixed.shared_work += ns * gpu.expert_gb_per_second;
  }
}

Fixed fixed_part(const SimMachine& m, const SimResident& r, const Homes& homes) {
  Fixed fixed;
  for (i64 l = 0; l < r.layers(); l++) {
    const LayerHome& home = homes.layers[static_cast<size_t>(l)];
    fixed.ns += m.layer_overhead_us * 1e3;
    add_attention(m, r, home, fixed);
    add_ffn(m, r, l < r.dense_layers, home, fixed);
  }
  i64 on_cores = r.head_rows;
  for (i64 rows : homes.head_rows) on_cores -= rows;
  add_on_cores(m, r, on_cores * r.head_row_bytes, fixed);
  fixed.ns += head_ns(m, r, homes);
  return fixed;
}

}  // namespace

f64 head_ns(const SimMachine& m, const SimResident& r, const Homes& homes) {
  f64 ns = 0;
  for (size_t d = 0; d < homes.head_rows.size(); d++) {
    f64 rows = static_cast<f64>(homes.head_rows[d]);
    f64 crossing = static_cast<f64>(r.hidden_bytes) / 2 + rows * static_cast<f64>(sizeof(f32));
    if (rows > 0)
      ns = std::max(ns, rows * static_cast<f64>(r.head_row_bytes) / m.gpus[d].gb_per_second + crossing / m.gpus[d].link_gb_per_second);
  }
  return ns;
}

f64 experts_ns(const SimMachine& m, const ExpertTable& table) {
  f64 ns = 0;
  for (const ExpertLayer& layer : table.layers())
    for (const Extent& matrix : layer.base)
      ns += static_cast<f64>(matrix.bytes * table.top_k()) / m.compute_speed(matrix.type);
  return ns;
}

SimBound bound(const SimMachine& m, const ExpertTable& table, const SimResident& r, const Homes& homes, const SimTraffic& traffic) {
  f64 routed_bytes = 0;
  for (const ExpertLayer& layer : table.layers())
    routed_bytes += static_cast<f64>(table.expert_bytes(layer.layer) * table.top_k());
  const Fixed fixed = fixed_part(m, r, homes);
  f64 experts = experts_ns(m, table) * (1 - traffic.device_bytes / routed_bytes);
  f64 gpu_speed = 0;
  for (const SimGpu& g : m.gpus) gpu_speed += g.expert_gb_per_second;
  f64 gpus = m.gpus.empty() ? 0 : (traffic.device_bytes + fixed.shared_work) / gpu_speed;
  f64 dram_bytes = fixed.dram_bytes + routed_bytes - traffic.device_bytes;

  f64 beside = std::max(experts, gpus);
  const char* slowest = fixed.ns > beside ? "resident weights" : gpus > experts ? "GPUs" : "experts";
  SimBound computing{(fixed.ns + beside) * 1e-6, slowest};
  SimBound drive{traffic.ssd_bytes / m.ssd_gb_per_second * 1e-6, "SSD"};
  SimBound memory{(dram_bytes + traffic.ssd_bytes + traffic.copied_bytes) / m.dram_gb_per_second * 1e-6, "DRAM"};
  return std::max({computing, drive, memory}, [](const SimBound& a, const SimBound& b) { return a.ms < b.ms; });
}

}  // namespace stoker
