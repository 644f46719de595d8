// stoker simulate: how fast a model would decode on a machine that is not here.
#include "tools/commands.h"
#include "tools/sim_report.h"
#include "tools/sim_run.h"
#include "tools/sim_sweep.h"
#include "tools/terminal.h"

namespace stoker {

int simulate_command(const Options& options) {
  if (!options.sweep_ram.empty()) return sweep_ram(options);
  SimSetup setup = sim_setup(options);
  SimReport report = run_simulation(options, setup);
  f64 foreseen = report.preloaded ? 0 : foreseen_tokens_per_second(report);
  print(options.json ? sim_json(report, foreseen) : sim_text(report, foreseen));
  return 0;
}

}  // namespace stoker
