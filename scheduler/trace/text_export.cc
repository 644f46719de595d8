#include "scheduler/trace/text_export.h"

#include <fmt/format.h>

#include <iterator>

namespace stoker {

namespace {

template <class... Args>
void append(std::string& out, fmt::format_string<Args...> text, Args&&... args) {
  fmt::format_to(std::back_inserter(out), text, std::forward<Args>(args)...);
}

std::string token_text(const TraceRecord& record) {
  return record.token == TraceRecord::kNoToken ? "-1" : fmt::format("{}", record.token);
}

// [[..], [..]], one row per layer.
template <class Value>
void append_rows(std::string& out, const std::vector<Value>& values, i64 cols) {
  for (size_t i = 0; i < values.size(); i++) {
    bool first = i % static_cast<size_t>(cols) == 0;
    append(out, "{}{}", first ? (i == 0 ? "[[" : "],[") : ",", values[i]);
  }
  out += "]]";
}

}  // namespace

std::string csv_heading(const TraceHeader& h) {
  return fmt::format("# stoker routing trace: model={} n_layer={} n_expert={} n_expert_used={}\n"
                     "turn,phase,step,layer,slot,expert,weight,token\n",
                     h.model_name, h.layers, h.experts, h.top_k);
}

void append_csv(const TraceHeader& h, const TraceRecord& r, std::string& out) {
  std::string token = token_text(r);
  for (i64 layer = 0; layer < h.layers; layer++)
    for (i64 k = 0; k < h.top_k; k++) {
      size_t at = static_cast<size_t>(layer * h.top_k + k);
      append(out, "{},{},{},{},{},{},{:.6g},{}\n", r.sequence, static_cast<int>(r.phase), r.position,
             h.first_layer + layer, k, r.ids[at], r.weights[at], token);
    }
}

void append_json(const TraceHeader& h, const TraceRecord& r, std::string& out) {
  append(out, "{{\"sequence\":{},\"position\":{},\"token\":{},\"phase\":\"{}\",\"first_layer\":{},\"experts\":", r.sequence,
         r.position, token_text(r), name(r.phase), h.first_layer);
  append_rows(out, r.ids, h.top_k);
  out += ",\"weights\":";
  append_rows(out, r.weights, h.top_k);
  if (h.has_served) {
    out += ",\"served\":";
    append_rows(out, r.served, h.top_k);
  }
  if (h.has_stalls) {
    out += ",\"stalls_10us\":";
    append_rows(out, r.stalls, 1);
  }
  if (h.guesses > 0) {
    out += ",\"guesses\":";
    append_rows(out, r.guesses, h.guesses);
    out += ",\"likelihoods\":";
    append_rows(out, r.likelihoods, h.guesses);
  }
  out += "}\n";
}

}  // namespace stoker
