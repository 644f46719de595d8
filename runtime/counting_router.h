// CountingRouter: keeps count of what another router chooses, for later runs to begin with (scheduler/popularity_file.h).
// Owner: the engine thread.
#pragma once

#include <string>

#include "runtime/router.h"
#include "scheduler/policy/popularity.h"

namespace stoker {

class CountingRouter final : public Router {
 public:
  // `router` must outlive this. Goes on from `known`.
  CountingRouter(Router& router, const Hparams& hparams, Popularity known);

  const Popularity& popularity() const { return popularity_; }

  void begin_batch(std::span<const BatchRow> rows) override;
  void route(const RoutedRows& rows, i32* ids, f32* gate_weights) override;

 private:
  Router& router_;
  i64 first_layer_, top_k_;
  Popularity popularity_;
};

}  // namespace stoker
