#include "tools/terminal.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <ctime>
#include <mutex>
#include <nlohmann/json.hpp>

#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "kernels/base/log.h"

namespace stoker {

namespace {

constexpr i64 kRedrawNs = 100'000'000;
constexpr i64 kBarCells = 30;

std::mutex stderr_lock;
bool bar_is_shown = false;  // under stderr_lock
i64 bar_drawn_ns = 0;
bool print_info = false;
bool json_lines = false;

// False when the descriptor does not take it; errno says why.
bool write_all(int descriptor, std::string_view text) {
  while (!text.empty()) {
    ssize_t n = ::write(descriptor, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    text.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

// What cannot be said to stderr cannot be said at all: failures are ignored.
void write_stderr(std::string_view text) { static_cast<void>(write_all(STDERR_FILENO, text)); }

void erase_bar() {
  if (bar_is_shown) write_stderr("\r\x1b[K");
  bar_is_shown = false;
}

// "stoker: warning: TEXT" says its level in words.
std::string as_json(std::string_view text) {
  auto take = [&](std::string_view start) {
    bool there = text.substr(0, start.size()) == start;
    if (there) text.remove_prefix(start.size());
    return there;
  };
  take("stoker: ");
  const char* level = take("warning: ") ? "warning" : take("error: ") ? "error" : "info";
  nlohmann::ordered_json line = {{"time", utc_now()}, {"level", level}, {"message", text}};
  return line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

void log_to_stderr(LogLevel level, std::string_view line) {
  if (level == LogLevel::warning) {
    note("stoker: warning: {}", line);
  } else if (print_info) {
    note("stoker: {}", line);
  }
}

}  // namespace

void set_up_terminal(bool verbose) {
  print_info = verbose;
  std::signal(SIGPIPE, SIG_IGN);
  set_log_sink(log_to_stderr);
}

void print(std::string_view text) {
  if (write_all(STDOUT_FILENO, text)) return;
  if (errno == EPIPE) throw OutputClosed{};
  fail("cannot write to stdout: {}", std::strerror(errno));
}

void note_as_json() { json_lines = true; }

void write_note(std::string_view text) {
  std::lock_guard lock(stderr_lock);
  erase_bar();
  write_stderr(fmt::format("{}\n", text));
}

void note_line(std::string_view text) { write_note(json_lines ? as_json(text) : text); }

std::string utc_now() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  tm parts{};
  ::gmtime_r(&now.tv_sec, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday,
                     parts.tm_hour, parts.tm_min, parts.tm_sec, now.tv_nsec / 1'000'000);
}

bool stderr_is_terminal() {
  static const bool yes = ::isatty(STDERR_FILENO) == 1;
  return yes;
}

void show_prompt(std::string_view text) {
  if (stderr_is_terminal()) write_stderr(text);
}

void show_progress(std::string_view stage, i64 done, i64 total, ProgressUnit unit) {
  if (!stderr_is_terminal()) return;
  std::lock_guard lock(stderr_lock);
  i64 now = steady_clock().now_ns();
  if (total <= 0 || done >= total) return erase_bar();
  if (bar_is_shown && now - bar_drawn_ns < kRedrawNs) return;
  f64 share = static_cast<f64>(done) / static_cast<f64>(total);
  auto cells = static_cast<size_t>(share * static_cast<f64>(kBarCells));
  std::string bar = std::string(cells, '=') + std::string(static_cast<size_t>(kBarCells) - cells, ' ');
  std::string amount = unit == ProgressUnit::bytes
                           ? fmt::format("{} of {}", human_bytes(done), human_bytes(total))
                           : fmt::format("{} of {} {}", done, total, unit == ProgressUnit::tokens ? "tokens" : "steps");
  write_stderr(fmt::format("\r\x1b[K{} [{}] {:3.0f} %  {}", stage, bar, share * 100, amount));
  bar_is_shown = true;
  bar_drawn_ns = now;
}

void clear_progress() {
  std::lock_guard lock(stderr_lock);
  erase_bar();
}

std::optional<std::string> read_line(bool& interrupted) {
  static std::string pending;  // read, not yet asked for
  interrupted = false;
  while (true) {
    size_t end = pending.find('\n');
    if (end != std::string::npos) {
      std::string line = pending.substr(0, end);
      pending.erase(0, end + 1);
      if (!line.empty() && line.back() == '\r') line.pop_back();
      return line;
    }
    std::array<char, 4096> piece;
    ssize_t n = ::read(STDIN_FILENO, piece.data(), piece.size());
    if (n < 0 && errno == EINTR) {
      interrupted = true;
      return "";
    }
    if (n < 0) fail("cannot read stdin: {}", std::strerror(errno));
    if (n == 0) {
      if (pending.empty()) return std::nullopt;
      return std::exchange(pending, "");
    }
    pending.append(piece.data(), static_cast<size_t>(n));
  }
}

std::string human_bytes(i64 bytes) {
  constexpr std::array<std::string_view, 5> units = {"B", "KiB", "MiB", "GiB", "TiB"};
  f64 value = static_cast<f64>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < units.size()) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes)
                   : fmt::format("{:.{}f} {}", value, value < 100 ? 1 : 0, units[unit]);
}

}  // namespace stoker
