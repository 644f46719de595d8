#include "tools/serve/request_log.h"

#include <algorithm>
#include <atomic>
#include <random>

#include "tools/serve/api_error.h"
#include "tools/terminal.h"

namespace stoker {

namespace {

constexpr size_t kLongestId = 128;
constexpr size_t kLongestPath = 256;

bool is_plain(char c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '-' || c == '_' || c == '.';
}

// A path may hold anything that is not white space: terminals shall not obey it.
std::string printable(std::string text) {
  text.resize(std::min(text.size(), kLongestPath));
  std::replace_if(text.begin(), text.end(), [](char c) { return c < 32 || c > 126; }, '?');
  return text;
}

}  // namespace

std::string RequestLog::id_for(const std::string& asked) {
  if (!asked.empty() && asked.size() <= kLongestId && std::all_of(asked.begin(), asked.end(), is_plain)) return asked;
  static const u32 run = std::random_device()();
  static std::atomic<u32> last{0};
  return fmt::format("{:08x}-{:06x}", run, ++last);
}

void RequestLog::write(const AnsweredRequest& r) {
  {
    std::lock_guard lock(mutex_);
    by_status_[r.status]++;
  }
  if (r.method == "GET" && r.status < 400) return;
  f64 ms = r.seconds < 0 ? 0 : r.seconds * 1e3;
  if (!json_)
    return note("{} {} {} {} {:.0f} ms, {}", printable(r.client), printable(r.method), printable(r.path), r.status, ms, r.id);
  write_note(to_text({{"time", utc_now()},
                      {"level", r.status >= 500 ? "warning" : "info"},
                      {"request_id", r.id},
                      {"client", printable(r.client)},
                      {"method", printable(r.method)},
                      {"path", printable(r.path)},
                      {"status", r.status},
                      {"ms", ms}}));
}

std::map<int, i64> RequestLog::by_status() const {
  std::lock_guard lock(mutex_);
  return by_status_;
}

}  // namespace stoker
