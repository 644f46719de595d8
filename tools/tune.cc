// stoker tune: measures this machine, and writes down what is best for it.
#include <filesystem>

#include "kernels/base/error.h"
#include "runtime/arch/deepseek2.h"
#include "scheduler/model_file/expert_table.h"
#include "scheduler/model_file/gguf.h"
#include "tools/commands.h"
#include "tools/terminal.h"
#include "tools/text_file.h"
#include "tools/tune/machine_measure.h"

namespace stoker {

namespace {

// The file that the experts are in, and their size.
MeasureRequest measure_model(const Options& o) {
  Gguf gguf = Gguf::open(o.model);
  Hparams h = read_deepseek2(gguf);
  if (h.moe_layers() == 0) fail("{}: the model has no routed experts: nothing of it streams", o.model);
  ExpertTable table = ExpertTable::from_gguf(gguf, h.expert_shape());
  LayerId layer = table.layers()[0].layer;
  return {.file = gguf.files()[static_cast<size_t>(table.extent(layer, ExpertId(0), ExpertMatrix::gate).file)].path,
          .request_bytes = table.expert_bytes(layer),
          .threads = static_cast<int>(o.threads)};
}

int measure(const Options& o) {
  std::string text;
  if (o.model.empty()) {
    ScratchFile scratch(std::filesystem::path(o.output).parent_path().string());
    MachineMeasure m = measure_machine({.file = scratch.path(), .threads = static_cast<int>(o.threads)});
    print(measure_text(m));
    text = measure_toml(m);
  } else {
    MachineMeasure m = measure_machine(measure_model(o));
    print(measure_text(m));
    text = measure_toml(m);
  }
  write_text_file(o.output, text);
  print(fmt::format("{}: written; `stoker simulate --machine {}` uses it\n", o.output, o.output));
  return 0;
}

}  // namespace

int tune_command(const Options& options) { return measure(options); }

}  // namespace stoker
