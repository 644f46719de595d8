#include "tools/tune/profile.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <toml++/toml.h>

#include "kernels/base/checksum.h"
#include "kernels/base/error.h"
#include "runtime/arch/deepseek2.h"
#include "runtime/recording_router.h"
#include "scheduler/model_file/expert_table.h"
#include "scheduler/model_file/gguf.h"
#include "tools/terminal.h"
#include "tools/tune/machine_measure.h"

namespace stoker {

namespace {

constexpr i64 kFormat = 1;
// Options that a profile may set.
constexpr std::array<std::string_view, 10> kSettings = {"policy",          "predictor",     "lookahead",  "prefetch", "prefetch-threshold",
                                                        "prefetch-window", "prefetch-gain", "ring-depth", "piece",    "popularity"};
constexpr std::array<std::string_view, 7> kKeys = {"format",    "model", "fingerprint", "machine",
                                                   "ram_bytes", "found", "settings"};

std::string toml_string(std::string_view text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<u8>(c) < ' ' ? ' ' : c;
  }
  return out + '"';
}

const toml::node& required(const toml::table& table, std::string_view key, const std::string& where) {
  const toml::node* node = table.get(key);
  if (node == nullptr) fail("{}: {} is missing: the profile is damaged; `stoker tune` makes a new one", where, key);
  return *node;
}

std::string text_of(const toml::table& table, std::string_view key, const std::string& where) {
  const toml::node& node = required(table, key, where);
  if (!node.is_string()) fail("{}: {} must be a text in quotes", where, key);
  return *node.value<std::string>();
}

f64 number_of(const toml::table& table, std::string_view key, const std::string& where) {
  const toml::node& node = required(table, key, where);
  if (!node.is_number()) fail("{}: {} must be a number", where, key);
  f64 value = *node.value<f64>();
  if (!(value >= 0 && value < 9e18)) fail("{}: {} = {} makes no sense", where, key, value);
  return value;
}

const toml::table& table_of(const toml::table& table, std::string_view key, const std::string& where) {
  const toml::node& node = required(table, key, where);
  if (!node.is_table()) fail("{}: [{}] must be a table", where, key);
  return *node.as_table();
}

void check_keys(const toml::table& table, const auto& known, const std::string& where) {
  for (const auto& [key, node] : table)
    if (std::find(known.begin(), known.end(), key.str()) == known.end())
      fail("{}: {} is no key of a profile; known here are {}", where, std::string(key.str()), fmt::join(known, ", "));
}

// None when this is no model: the command says so.
std::string fingerprint_of(const std::string& model) {
  try {
    Gguf gguf = Gguf::open(model);
    Hparams h = read_deepseek2(gguf);
    return h.moe_layers() > 0 ? model_fingerprint(gguf, h) : "";
  } catch (const Error&) {
    return "";
  }
}

std::string describe(const std::vector<Setting>& settings) {
  std::string text;
  for (const Setting& s : settings)
    if (s.name != "popularity") text += fmt::format("{}{} {}", text.empty() ? "" : ", ", s.name, s.value);
  return text;
}

// Throws Error when the profile is not for this model here.
void check_fits(const Profile& p, const std::string& fingerprint, const std::string& path) {
  if (p.fingerprint != fingerprint)
    fail("{}: the profile of another model, {} ({}; this one is {})", path, p.model, p.fingerprint, fingerprint);
  if (p.machine != machine_name())
    fail("{}: the profile of another machine, {}; this one is {}. `stoker tune` makes one", path, p.machine, machine_name());
}

void apply(Command command, const std::string& path, const std::string& fingerprint, Options& o) {
  Profile p = read_profile(path);
  check_fits(p, fingerprint, path);
  Options changed = o;
  std::vector<std::string> problems = apply_settings(command, p.settings, changed);
  if (!problems.empty()) fail("{}: {}", path, problems[0]);
  o = changed;
  note("profile {}: {}", path, describe(p.settings));
}

}  // namespace

std::string model_fingerprint(const Gguf& gguf, const Hparams& h) {
  ExpertTable table = ExpertTable::from_gguf(gguf, h.expert_shape());
  std::string text = fmt::format("{}|{}", trace_header(h).model_hash, table.total_bytes());
  for (const ExpertLayer& layer : table.layers())
    for (ExpertMatrix m : {ExpertMatrix::gate, ExpertMatrix::up, ExpertMatrix::down})
      text += fmt::format("|{}", static_cast<int>(table.extent(layer.layer, ExpertId(0), m).type));
  return fmt::format("{:016x}", checksum(std::as_bytes(std::span(text))));
}

std::string profile_toml(const Profile& p) {
  std::string text = fmt::format(
      "# Found by `stoker tune`. stoker run, bench and serve use it; --profile none does without it.\nformat = {}\nmodel = {}\n"
      "fingerprint = {}\nmachine = {}\nram_bytes = {}\n\n[found]  # tokens per second, side by side\ndefaults = {:.4g}\nthese = "
      "{:.4g}\n\n[settings]  # options of the command line\n",
      kFormat, toml_string(p.model), toml_string(p.fingerprint), toml_string(p.machine), p.ram_bytes, p.default_tokens_per_second,
      p.tokens_per_second);
  for (const Setting& s : p.settings) text += fmt::format("{} = {}\n", s.name, toml_string(s.value));
  return text;
}

Profile parse_profile(std::string_view toml, const std::string& where) {
  toml::table table;
  try {
    table = toml::parse(toml);
  } catch (const toml::parse_error& e) {
    fail("{}, line {}: not TOML: {}", where, e.source().begin.line, e.description());
  }
  f64 format = number_of(table, "format", where);
  if (format != static_cast<f64>(kFormat)) fail("{}: a profile of format {}; this program reads {}", where, format, kFormat);
  check_keys(table, kKeys, where);
  Profile p{.model = text_of(table, "model", where),
            .fingerprint = text_of(table, "fingerprint", where),
            .machine = text_of(table, "machine", where),
            .ram_bytes = static_cast<i64>(number_of(table, "ram_bytes", where)),
            .settings = {}};
  const toml::table& found = table_of(table, "found", where);
  p.default_tokens_per_second = number_of(found, "defaults", where);
  p.tokens_per_second = number_of(found, "these", where);
  const toml::table& settings = table_of(table, "settings", where);
  check_keys(settings, kSettings, where);
  for (std::string_view name : kSettings)
    if (settings.contains(name)) p.settings.push_back({std::string(name), text_of(settings, name, where)});
  return p;
}

Profile read_profile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  if (!in || !(text << in.rdbuf())) fail("{}: cannot read this profile; does it exist?", path);
  return parse_profile(text.str(), path);
}

std::string profile_folder() {
  const char* config = std::getenv("XDG_CONFIG_HOME");
  if (config != nullptr && *config != '\0') return (std::filesystem::path(config) / "stoker").string();
  const char* home = std::getenv("HOME");
  return home != nullptr && *home != '\0' ? (std::filesystem::path(home) / ".config" / "stoker").string() : "";
}

std::string default_profile_path(const std::string& fingerprint) {
  std::string folder = profile_folder();
  return folder.empty() ? "" : (std::filesystem::path(folder) / (fingerprint + ".toml")).string();
}

void use_profile(Command command, Options& o) {
  if (o.tune_profile == "none") return;
  bool asked = o.tune_profile != "auto";
  std::error_code ignored;
  if (!asked && (profile_folder().empty() || !std::filesystem::exists(profile_folder(), ignored))) return;
  std::string fingerprint = fingerprint_of(o.model);
  if (fingerprint.empty()) return;
  std::string path = asked ? o.tune_profile : default_profile_path(fingerprint);
  if (!asked && !std::filesystem::exists(path, ignored)) return;
  try {
    apply(command, path, fingerprint, o);
  } catch (const Error& e) {
    if (asked) throw;
    note("warning: {}; the profile is not used", e.what());
  }
}

}  // namespace stoker
