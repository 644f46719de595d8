// stoker simulate: how fast a model would decode on a machine that is not here.
#include "tools/commands.h"
#include "tools/recall_chart.h"
#include "tools/sim_report.h"
#include "tools/sim_run.h"
#include "tools/sim_sweep.h"
#include "tools/terminal.h"

namespace stoker {

namespace {

void plot_recall(const std::string& path, const SimReport& report) {
  const SimSetup& setup = report.setup;
  write_recall_chart(path, {.model = setup.model + " (simulated)",
                            .predictor = std::string(report.predictor),
                            .first_layer = setup.routing.first_layer,
                            .experts = setup.table.experts_per_layer(),
                            .top_k = setup.table.top_k(),
                            .scores = report.layer_forecasts});
}

}  // namespace

int simulate_command(const Options& options) {
  if (!options.sweep_ram.empty()) return sweep_ram(options);
  SimSetup setup = sim_setup(options);
  SimReport report = run_simulation(options, setup);
  if (!options.plot_recall.empty()) plot_recall(options.plot_recall, report);
  SimForeknown known = foreknown(report);
  print(options.json ? sim_json(report, known) : sim_text(report, known));
  return 0;
}

}  // namespace stoker
