#include "tools/device_option.h"

#include <charconv>
#include <string>

#include "tools/options.h"

namespace stoker {

namespace {

constexpr i64 kMostDevices = 64;

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> parts;
  for (size_t end = 0; end != std::string_view::npos; text.remove_prefix(std::min(end + 1, text.size()))) {
    end = text.find(at);
    parts.push_back(text.substr(0, end));
  }
  return parts;
}

bool parse_whole(std::string_view text, i64& value) {
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && value >= 0;
}

i64 whole(std::string_view key, std::string_view text) {
  i64 value = 0;
  if (!parse_whole(text, value)) fail("--device: {}={}: must be a whole number", key, text);
  return value;
}

// "13GB/s" -> 13
f64 rate(std::string_view key, std::string_view text) {
  i64 bytes = 0;
  if (!text.ends_with("/s") || !parse_byte_size(text.substr(0, text.size() - 2), bytes))
    fail("--device: {}={}: must be a speed, such as 13GB/s", key, text);
  return static_cast<f64>(bytes) * 1e-9;
}

i64 size(std::string_view key, std::string_view text) {
  i64 bytes = 0;
  if (!parse_byte_size(text, bytes)) fail("--device: {}={}: must be a size with a unit, such as 256MiB", key, text);
  return bytes;
}

// Which of two words.
bool choice(std::string_view key, std::string_view text, std::string_view no, std::string_view yes) {
  if (text != no && text != yes) fail("--device: {}={}: must be {} or {}", key, text, no, yes);
  return text == yes;
}

// "N": for the first device; "D:N": for device D.
void set_fault(std::vector<HostDeviceOptions>& devices, i64 HostDeviceOptions::*field, std::string_view key,
               std::string_view text) {
  size_t colon = text.find(':');
  i64 device = colon == std::string_view::npos ? 0 : whole(key, text.substr(0, colon));
  if (device >= static_cast<i64>(devices.size())) fail("--device: {}={}: there is no device {}", key, text, device);
  devices[static_cast<size_t>(device)].*field = whole(key, colon == std::string_view::npos ? text : text.substr(colon + 1));
}

void set_host_option(std::vector<HostDeviceOptions>& devices, std::string_view key, std::string_view value) {
  if (key == "fail-copy") return set_fault(devices, &HostDeviceOptions::fail_copy, key, value);
  if (key == "fail-allocation") return set_fault(devices, &HostDeviceOptions::fail_allocation, key, value);
  if (key == "lose-at") return set_fault(devices, &HostDeviceOptions::lose_at, key, value);
  for (size_t i = 0; i < devices.size(); i++) {
    HostDeviceOptions& d = devices[i];
    if (key == "vram")
      d.vram_bytes = size(key, value);
    else if (key == "link")
      d.link_gb_per_second = rate(key, value);
    else if (key == "compute")
      d.compute_gb_per_second = rate(key, value);
    else if (key == "layout")
      d.packed = choice(key, value, "file", "packed");
    else if (key == "unpinned")
      d.only_pinned = choice(key, value, "allowed", "refused");
    else if (key == "delay-us")
      d.delay_us_max = whole(key, value);
    else if (key == "seed")
      d.seed = static_cast<u64>(whole(key, value)) + i;
    else
      fail("--device: {}: a host device has vram, link, compute, layout, unpinned, delay-us, seed, fail-copy, "
           "fail-allocation and lose-at",
           key);
  }
}

DeviceChoice host_devices(std::string_view text) {
  DeviceChoice choice{.kind = DeviceChoice::Kind::host, .cards = {}, .host = {}};
  std::vector<std::string_view> parts = split(text, ',');
  i64 count = 0;
  if (!parse_whole(parts[0], count) || count < 1 || count > kMostDevices)
    fail("--device host:{}: must begin with their number, from 1 to {}", text, kMostDevices);
  choice.host.resize(static_cast<size_t>(count));
  for (size_t i = 0; i < choice.host.size(); i++) choice.host[i].seed += i;
  for (size_t i = 1; i < parts.size(); i++) {
    size_t equals = parts[i].find('=');
    if (equals == std::string_view::npos) fail("--device host: {}: must be KEY=VALUE", parts[i]);
    set_host_option(choice.host, parts[i].substr(0, equals), parts[i].substr(equals + 1));
  }
  return choice;
}

DeviceChoice cuda_devices(std::string_view text) {
  DeviceChoice choice{.kind = DeviceChoice::Kind::cuda, .cards = {}, .host = {}};
  for (std::string_view card : split(text, ',')) {
    i64 ordinal = 0;
    if (!parse_whole(card, ordinal) || ordinal >= kMostDevices) fail("--device cuda:{}: must be cards' numbers, such as cuda:0,1", text);
    choice.cards.push_back(static_cast<int>(ordinal));
  }
  return choice;
}

}  // namespace

DeviceChoice parse_device_choice(std::string_view text) {
  if (text == "auto") return {.kind = DeviceChoice::Kind::automatic, .cards = {}, .host = {}};
  if (text == "cpu") return {.kind = DeviceChoice::Kind::cpu, .cards = {}, .host = {}};
  if (text.starts_with("cuda:")) return cuda_devices(text.substr(5));
  if (text.starts_with("host:")) return host_devices(text.substr(5));
  fail("--device {}: must be auto, cpu, cuda:0,1 or host:N,...", text);
}

std::vector<i64> parse_vram(std::string_view text) {
  std::vector<i64> sizes;
  if (text.empty()) return sizes;
  for (std::string_view part : split(text, ',')) {
    i64 bytes = 0;
    if (!parse_byte_size(part, bytes)) fail("--vram {}: must be sizes with a unit, such as 22GiB or 22G,8G", text);
    sizes.push_back(bytes);
  }
  return sizes;
}

}  // namespace stoker
