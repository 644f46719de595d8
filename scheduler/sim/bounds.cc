#include "scheduler/sim/bounds.h"

#include <algorithm>
#include <cmath>

#include "scheduler/sim/simulator.h"

namespace stoker {

i64 attention_ns(const SimMachine& m, const SimResident& r) {
  return m.attention_gflops > 0 ? std::llround(static_cast<f64>(r.attention_flops) / m.attention_gflops) : 0;
}

f64 fixed_ns(const SimMachine& m, const SimResident& r) {
  bool gpu = fits_vram(m, r), multiplies = !gpu && m.attention_gflops > 0;
  f64 layers = static_cast<f64>(r.dense_layers + r.moe_layers);
  f64 speed = gpu ? m.gpus[0].gb_per_second : m.compute_speed(r.type);
  f64 crossing = gpu ? static_cast<f64>(r.hidden_bytes) / m.gpus[0].link_gb_per_second : 0;
  f64 attention = multiplies ? static_cast<f64>(attention_ns(m, r)) - static_cast<f64>(r.kv_layer_bytes()) / speed : 0;
  return static_cast<f64>(r.total_bytes()) / speed + layers * (m.layer_overhead_us * 1e3 + attention) +
         static_cast<f64>(r.moe_layers) * crossing;
}

f64 experts_ns(const SimMachine& m, const ExpertTable& table) {
  f64 ns = 0;
  for (const ExpertLayer& layer : table.layers())
    for (const Extent& matrix : layer.base)
      ns += static_cast<f64>(matrix.bytes * table.top_k()) / m.compute_speed(matrix.type);
  return ns;
}

SimBound bound(const SimMachine& m, const ExpertTable& table, const SimResident& r, const SimTraffic& traffic) {
  bool gpu = fits_vram(m, r);
  f64 routed_bytes = 0;
  for (const ExpertLayer& layer : table.layers())
    routed_bytes += static_cast<f64>(table.expert_bytes(layer.layer) * table.top_k());
  f64 shared = gpu ? static_cast<f64>(r.moe_layers * r.shared_bytes) / m.gpus[0].gb_per_second : 0;
  f64 fixed = fixed_ns(m, r) - shared;
  f64 experts = experts_ns(m, table) * (1 - traffic.device_bytes / routed_bytes);
  f64 gpu_speed = 0;
  for (const SimGpu& g : m.gpus) gpu_speed += g.expert_gb_per_second;
  f64 gpus = m.gpus.empty() ? 0 : traffic.device_bytes / gpu_speed + shared / static_cast<f64>(m.gpus.size());
  f64 dram_bytes = (gpu ? 0 : static_cast<f64>(r.total_bytes())) + routed_bytes - traffic.device_bytes;

  f64 beside = std::max(experts, gpus);
  const char* slowest = fixed > beside ? "resident weights" : gpus > experts ? "GPUs" : "experts";
  SimBound computing{(fixed + beside) * 1e-6, slowest};
  SimBound drive{traffic.ssd_bytes / m.ssd_gb_per_second * 1e-6, "SSD"};
  SimBound memory{(dram_bytes + traffic.ssd_bytes + traffic.copied_bytes) / m.dram_gb_per_second * 1e-6, "DRAM"};
  return std::max({computing, drive, memory}, [](const SimBound& a, const SimBound& b) { return a.ms < b.ms; });
}

}  // namespace stoker
