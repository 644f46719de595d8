#include "tools/serve/loading.h"

namespace stoker {

void Loading::note(std::string_view stage, i64 done_bytes, i64 total_bytes) {
  std::lock_guard lock(mutex_);
  stage_ = stage;
  done_ = done_bytes;
  total_ = total_bytes;
}

Json Loading::json() const {
  Json json = ApiError(503, "Loading model").json();
  std::lock_guard lock(mutex_);
  json["progress"] = {{"stage", stage_},
                      {"done_bytes", done_},
                      {"total_bytes", total_},
                      {"share", total_ > 0 ? static_cast<f64>(done_) / static_cast<f64>(total_) : 0}};
  return json;
}

}  // namespace stoker
