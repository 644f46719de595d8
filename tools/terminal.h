// What the program shows and reads: answers on stdout, everything else on stderr, lines from stdin.
// Used by the main thread; log lines may come from any thread.
#pragma once

#include <fmt/format.h>

#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "kernels/base/types.h"

namespace stoker {

// Ignores SIGPIPE (a closed stdout is noticed by the write that fails) and sends log lines to stderr:
// warnings always, the rest when `verbose`.
void set_up_terminal(bool verbose);

// Thrown by print() once the reader of stdout has gone away: the program ends, quietly.
struct OutputClosed {};

// Writes to stdout at once. Throws OutputClosed, or Error for a full disk.
void print(std::string_view text);

// One line to stderr; a progress bar on it is erased first.
void note_line(std::string_view text);
template <class... Args>
void note(fmt::format_string<Args...> text, Args&&... args) {
  note_line(fmt::format(text, std::forward<Args>(args)...));
}

// From now on each line to stderr is an object: time, level (info, warning, error), message.
void note_as_json();
// A line that is written as it is.
void write_note(std::string_view text);
// "2026-01-31T23:59:59.123Z"
std::string utc_now();

bool stderr_is_terminal();
// What a line of input is asked for with, on stderr, when that is a terminal.
void show_prompt(std::string_view text);

// "stage [=====>    ] 43 %  12.1 of 28.0 GiB" on stderr, redrawn in place; nothing when stderr is no
// terminal. `total` 0 erases. Units: bytes, tokens or steps.
enum class ProgressUnit { bytes, tokens, steps };
void show_progress(std::string_view stage, i64 done, i64 total, ProgressUnit unit);
void clear_progress();

// A line from stdin without its end; nullopt at the end of input. `interrupted` is set when a signal came
// while nothing had been read (the line is then empty).
std::optional<std::string> read_line(bool& interrupted);

// 1536 -> "1.5 KiB", 20393344 -> "19.4 MiB"
std::string human_bytes(i64 bytes);

}  // namespace stoker
