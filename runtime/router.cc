#include "runtime/router.h"

namespace stoker {

GateRouter::GateRouter(const Ops& ops, const Hparams& hparams, i64 max_tokens)
    : ops_(ops), h_(hparams), logits_(static_cast<size_t>(max_tokens * hparams.experts)) {}

void GateRouter::route(const RoutedRows& rows, i32* ids, f32* gate_weights) {
  if (rows.chosen) return;
  choose_experts(ops_, rows.stream, h_,
                 {.router = rows.weights.router,
                  .bias = rows.weights.router_bias,
                  .x = rows.x,
                  .tokens = rows.tokens,
                  .logits = logits_.data(),
                  .ids = ids,
                  .weights = gate_weights});
}

void choose_experts(const Ops& ops, Stream& stream, const Hparams& h, const GateArgs& a) {
  ops.matmul(stream, {.weights = a.router,
                      .x = {a.x, ActivationForm::F32, h.hidden * i64{sizeof(f32)}},
                      .tokens = a.tokens,
                      .y = a.logits,
                      .y_stride = h.experts});
  ops.route(stream, {.logits = a.logits,
                     .tokens = a.tokens,
                     .experts = h.experts,
                     .top_k = h.top_k,
                     .bias = a.bias,
                     .sigmoid = h.expert_sigmoid,
                     .normalise = h.expert_normalise,
                     .scale = h.expert_scale,
                     .groups = h.groups,
                     .groups_used = h.groups_used,
                     .group_score_is_max = h.group_score_is_max,
                     .ids = a.ids,
                     .weights = a.weights});
}

}  // namespace stoker
