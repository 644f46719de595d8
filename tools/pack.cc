// stoker pack: lays a model out for streaming, or checks one that is.
#include <nlohmann/json.hpp>

#include "kernels/base/clock.h"
#include "runtime/arch/deepseek2.h"
#include "runtime/interrupted.h"
#include "scheduler/model_file/gguf.h"
#include "scheduler/model_file/pack_check.h"
#include "scheduler/model_file/pack_writer.h"
#include "tools/commands.h"
#include "tools/interrupt.h"
#include "tools/terminal.h"

namespace stoker {

namespace {

void show_bytes(std::string_view stage, i64 done, i64 total) {
  show_progress(stage, done, total, ProgressUnit::bytes);
  if (interrupt_flag().load()) throw Interrupted();
}

std::vector<std::string> split_at_commas(std::string_view text) {
  std::vector<std::string> parts;
  while (!text.empty()) {
    size_t comma = text.find(',');
    parts.emplace_back(text.substr(0, comma));
    text.remove_prefix(comma == std::string_view::npos ? text.size() : comma + 1);
  }
  return parts;
}

struct Model {
  Gguf gguf;
  ExpertTable experts;

  explicit Model(const std::string& path) : gguf(Gguf::open(path)) {
    Hparams h = read_deepseek2(gguf);
    if (h.moe_layers() == 0) fail("{}: the model has no layer with experts", path);
    experts = ExpertTable::from_gguf(gguf, h.expert_shape());
  }
};

f64 seconds_since(i64 begin) { return static_cast<f64>(steady_clock().now_ns() - begin) * 1e-9; }

int verify(const Options& options) {
  Model model(options.verify);
  i64 begin = steady_clock().now_ns();
  PackCheck check = check_pack(model.gguf, model.experts,
                               [](i64 done, i64 total) { show_bytes("checking", done, total); });
  f64 seconds = seconds_since(begin);
  clear_progress();
  if (options.json) {
    nlohmann::ordered_json report = {{"files", model.gguf.files().size()},
                                     {"experts", check.experts},
                                     {"tensors", check.tensors},
                                     {"checked_bytes", check.bytes},
                                     {"damaged", check.damaged},
                                     {"seconds", seconds}};
    print(report.dump(2) + "\n");
  }
  note("{} experts and {} tensors, {} in {:.1f} s ({:.2f} GB/s)", check.experts, check.tensors,
       human_bytes(check.bytes), seconds, static_cast<f64>(check.bytes) * 1e-9 / seconds);
  if (check.damaged.empty()) {
    if (!options.json) print("every checksum agrees\n");
    return 0;
  }
  for (const std::string& line : check.damaged) note("{}", line);
  note("stoker: error: {}: {} damaged place{}; pack the model again", options.verify, check.damaged.size(),
       check.damaged.size() == 1 ? "" : "s");
  return 1;
}

}  // namespace

int pack_command(const Options& options) {
  if (!options.verify.empty()) return verify(options);
  Model model(options.model);
  i64 begin = steady_clock().now_ns();
  PackResult result = write_pack(model.gguf, model.experts,
                                 {.output = options.output,
                                  .stripe_folders = split_at_commas(options.stripe_folders),
                                  .replace = options.force},
                                 [](i64 done, i64 total) { show_bytes("packing", done, total); });
  f64 seconds = seconds_since(begin);
  clear_progress();
  note("{} experts of {}, {} of other tensors, {} written in {:.1f} s ({:.2f} GB/s)", result.experts,
       human_bytes(result.expert_bytes), human_bytes(result.tensor_bytes), human_bytes(result.written_bytes),
       seconds, static_cast<f64>(result.written_bytes) * 1e-9 / seconds);
  if (options.json) {
    nlohmann::ordered_json report = {{"files", result.paths},
                                     {"experts", result.experts},
                                     {"expert_bytes", result.expert_bytes},
                                     {"tensor_bytes", result.tensor_bytes},
                                     {"written_bytes", result.written_bytes},
                                     {"seconds", seconds}};
    print(report.dump(2) + "\n");
    return 0;
  }
  for (const std::string& path : result.paths) print(path + "\n");
  return 0;
}

}  // namespace stoker
