// The commands of the binary, one file each. They return the program's exit code and throw Error for what is
// wrong.
#pragma once

#include "tools/options.h"

namespace stoker {

int run_command(const Options& options);
int inspect_command(const Options& options);
int tokenize_command(const Options& options);
int eval_command(const Options& options);
int bench_command(const Options& options);
int synth_command(const Options& options);
int pack_command(const Options& options);
int simulate_command(const Options& options);
int plan_command(const Options& options);
int trace_command(const Options& options);
int tune_command(const Options& options);
int serve_command(const Options& options);
int devices_command(const Options& options);

}  // namespace stoker
