// TokenFilter: which tokens may come next, whatever the logits say. One owner thread.
#pragma once

#include <span>

#include "kernels/base/types.h"

namespace stoker {

class TokenFilter {
 public:
  virtual ~TokenFilter() = default;

  virtual bool allows(i32 token) = 0;  // cheap; an end token: whether the text may end here
  // Sets the logits [vocab] of all other tokens to -infinity.
  virtual void mask(std::span<f32> logits) = 0;
  // `token` is what came. False: it was not allowed, and nothing has changed.
  virtual bool accept(i32 token) = 0;
  virtual bool finished() const = 0;  // only the end may come
};

}  // namespace stoker
