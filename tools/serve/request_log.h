// RequestLog: a line on stderr for every request that was answered, under an id that the client hears too, and how many
// there were of each status. Questions of monitors (GET, answered well) are counted and not written. Any thread.
#pragma once

#include <map>
#include <mutex>
#include <string>

#include "kernels/base/types.h"

namespace stoker {

struct AnsweredRequest {
  std::string id, client, method, path;
  int status = 0;
  f64 seconds = -1;  // -1: not known
};

class RequestLog {
 public:
  explicit RequestLog(bool json) : json_(json) {}

  // `asked`: the client's own id, taken when it is a short plain word; else a new one.
  static std::string id_for(const std::string& asked);
  void write(const AnsweredRequest& request);
  std::map<int, i64> by_status() const;

 private:
  bool json_;
  mutable std::mutex mutex_;
  std::map<int, i64> by_status_;
};

}  // namespace stoker
