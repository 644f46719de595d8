// The one binary: command line -> command -> exit code. 0: done, 1: an error was printed, 130: interrupted.
#include <unistd.h>

#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/interrupted.h"
#include "tools/commands.h"
#include "tools/interrupt.h"
#include "tools/terminal.h"
#include "tools/tune/profile.h"

namespace {

using namespace stoker;

int execute(Command command, const Options& options) {
  switch (command) {
    case Command::run:
      return run_command(options);
    case Command::inspect:
      return inspect_command(options);
    case Command::tokenize:
      return tokenize_command(options);
    case Command::eval:
      return eval_command(options);
    case Command::bench:
      return bench_command(options);
    case Command::synth:
      return synth_command(options);
    case Command::pack:
      return pack_command(options);
    case Command::simulate:
      return simulate_command(options);
    case Command::plan:
      return plan_command(options);
    case Command::trace:
      return trace_command(options);
    case Command::serve:
      return serve_command(options);
    case Command::tune:
      return tune_command(options);
    case Command::devices:
      return devices_command(options);
    case Command::none:
      break;
  }
  return 1;
}

int error(std::string_view text) {
  note("stoker: error: {}", text);
  return 1;
}

int dispatch(const std::vector<std::string>& arguments) {
  CommandLine line = parse_command_line(arguments);
  set_up_terminal(line.options.verbose);
  for (const std::string& problem : line.problems) error(problem);
  if (!line.problems.empty()) return 1;
  if (line.action == CommandLine::Action::version) {
    print("stoker " STOKER_VERSION "\n");
    return 0;
  }
  if (line.action == CommandLine::Action::help) {
    print(line.command == Command::none ? overview_help() : command_help(line.command));
    return 0;
  }
  catch_interrupts();
  if (line.command == Command::run || line.command == Command::bench || line.command == Command::serve)
    use_profile(line.command, line.options);
  return execute(line.command, line.options);
}

constexpr std::string_view kOutOfMemory = "out of memory; a smaller --ram or -c needs less";

std::terminate_handler otherwise = nullptr;

// What a thread has thrown that nobody catches there. Without memory nothing but this can be done.
[[noreturn]] void end_with_message() {
  try {
    if (std::current_exception()) throw;
  } catch (const std::bad_alloc&) {
    for (std::string_view part : {std::string_view("stoker: error: "), kOutOfMemory, std::string_view("\n")})
      (void)!::write(STDERR_FILENO, part.data(), part.size());
    ::_exit(1);
  } catch (...) {
  }
  otherwise();
  std::abort();
}

}  // namespace

int main(int argc, char** argv) {
  otherwise = std::set_terminate(end_with_message);
  try {
    return dispatch(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const OutputClosed&) {
    return 0;  // whoever read the answer has had enough
  } catch (const Interrupted&) {
    note("stoker: interrupted");
    return kInterruptedExit;
  } catch (const std::bad_alloc&) {
    return error(kOutOfMemory);
  } catch (const std::exception& e) {
    return error(e.what());
  }
}
