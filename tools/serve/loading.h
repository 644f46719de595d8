// Loading: how far the model is, told by the thread that loads and asked by those that answer. Any thread.
#pragma once

#include <mutex>
#include <string>

#include "kernels/base/types.h"
#include "tools/serve/api_error.h"

namespace stoker {

class Loading {
 public:
  void note(std::string_view stage, i64 done_bytes, i64 total_bytes);

  // llama-server's object for a model that is not there yet, with `progress` beside it.
  Json json() const;

 private:
  mutable std::mutex mutex_;
  std::string stage_ = "start";
  i64 done_ = 0, total_ = 0;
};

}  // namespace stoker
