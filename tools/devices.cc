// `stoker devices`: what there is to compute on, how fast it is, and what --device auto would take.
#include <nlohmann/json.hpp>

#include "kernels/device/cuda_device.h"
#include "kernels/device/link_probe.h"
#include "kernels/device/stream.h"
#include "runtime/settle_devices.h"
#include "scheduler/machine.h"
#include "scheduler/memory_probe.h"
#include "tools/commands.h"
#include "tools/device_option.h"
#include "tools/terminal.h"

namespace stoker {

namespace {

constexpr i64 kProbeBytes = 64 * kMiB;
constexpr int kProbeRounds = 3;

nlohmann::ordered_json cpu_json() {
  MemoryMeasure memory = measure_memory({.bytes = 128 * kMiB, .rounds = 2});  // an impression; `run --perf` takes longer
  Machine machine = read_machine();
  return {{"cores", machine.physical_cores},
          {"isa", name(best_isa_level())},
          {"memory_bytes", machine.total_ram_bytes},
          {"memory_gb_per_second", memory.best().gb_per_second}};
}

std::vector<std::unique_ptr<Device>> devices_to_list(const Options& o) {
  DeviceChoice choice = parse_device_choice(o.device);
  if (choice.kind == DeviceChoice::Kind::automatic) {
    choice.kind = DeviceChoice::Kind::cuda;  // all there are, also those that nobody can compute on
    for (int i = 0; i < cuda_presence().cards; i++) choice.cards.push_back(i);
  }
  return open_devices(choice);
}

nlohmann::ordered_json device_json(Device& device, const std::vector<std::unique_ptr<Device>>& all) {
  DeviceProperties p = device.properties();
  nlohmann::ordered_json json = {
      {"id", p.id}, {"name", p.name}, {"memory_bytes", p.total_bytes}, {"free_bytes", p.free_bytes}};
  if (device.kind() == DeviceKind::cuda)
    json["compute_capability"] = fmt::format("{}.{}", p.compute_major, p.compute_minor);
  LinkMeasure link;
  Status status = measure_link(device, std::min(kProbeBytes, p.free_bytes / 4), kProbeRounds, link);
  if (status.ok()) {
    json["to_device_gb_per_second"] = link.to_device_gb_per_second;
    json["to_host_gb_per_second"] = link.to_host_gb_per_second;
    json["memory_gb_per_second"] = link.memory_gb_per_second;
  } else {
    json["not_measured"] = status.message();
  }
  json["peers"] = nlohmann::ordered_json::array();
  for (const auto& other : all)
    if (other.get() != &device && device.has_peer_access(*other)) json["peers"].push_back(other->properties().id);
  return json;
}

std::string text_of(const nlohmann::ordered_json& json) {
  const nlohmann::ordered_json& cpu = json["cpu"];
  std::string text = fmt::format("cpu      {} cores, {}, {} memory, read at {:.1f} GB/s\n", cpu["cores"].get<int>(),
                                 cpu["isa"].get<std::string>(), human_bytes(cpu["memory_bytes"]),
                                 cpu["memory_gb_per_second"].get<f64>());
  for (const auto& device : json["devices"]) {
    text += fmt::format("{:<8} {}, {} memory, {} free\n", device["id"].get<std::string>(),
                        device["name"].get<std::string>(), human_bytes(device["memory_bytes"]),
                        human_bytes(device["free_bytes"]));
    if (device.contains("not_measured")) {
      text += fmt::format("         not measured: {}\n", device["not_measured"].get<std::string>());
    } else {
      text += fmt::format("         link {:.1f} GB/s to it, {:.1f} GB/s back; memory {:.1f} GB/s\n",
                          device["to_device_gb_per_second"].get<f64>(), device["to_host_gb_per_second"].get<f64>(),
                          device["memory_gb_per_second"].get<f64>());
    }
    std::string peers;
    for (const auto& peer : device["peers"]) peers += (peers.empty() ? "" : ", ") + peer.get<std::string>();
    if (!peers.empty()) text += fmt::format("         direct copies from {}\n", peers);
  }
  if (json.contains("no_cuda")) text += fmt::format("cuda     none: {}\n", json["no_cuda"].get<std::string>());
  return text + fmt::format("--device auto takes {}: {}\n", json["auto"].get<std::string>(),
                            json["auto_because"].get<std::string>());
}

std::string choice_text(const DeviceChoice& choice) {
  if (choice.kind == DeviceChoice::Kind::cpu) return "cpu";
  std::string text;
  for (int card : choice.cards) text += fmt::format("{}{}", text.empty() ? "cuda:" : ",", card);
  return text;
}

}  // namespace

int devices_command(const Options& o) {
  nlohmann::ordered_json json;
  json["cpu"] = cpu_json();
  json["devices"] = nlohmann::ordered_json::array();
  std::vector<std::unique_ptr<Device>> devices = devices_to_list(o);
  for (const auto& device : devices) json["devices"].push_back(device_json(*device, devices));
  if (cuda_presence().cards == 0) json["no_cuda"] = cuda_presence().why_none;
  SettledDevices settled = settle_devices({.kind = DeviceChoice::Kind::automatic, .cards = {}, .host = {}});
  json["auto"] = choice_text(settled.choice);
  json["auto_because"] = settled.why;
  print(o.json ? json.dump(2) + "\n" : text_of(json));
  return 0;
}

}  // namespace stoker
