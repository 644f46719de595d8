// Two passes: the first learns the shape (layers, ranks, experts), the second makes the records.
#include <algorithm>
#include <array>
#include <filesystem>
#include <map>

#include "kernels/base/error.h"
#include "scheduler/trace/fields.h"
#include "scheduler/trace/text_import.h"
#include "scheduler/trace/text_lines.h"

namespace stoker {

namespace {

constexpr std::array<std::string_view, 7> kColumns = {"turn", "phase", "step", "layer", "slot", "expert", "weight"};
constexpr i64 kMostNumber = 65535;  // of a layer, rank or expert

struct Row {
  i64 turn = 0, phase = 0, step = 0, layer = 0, slot = 0, expert = 0;
  f64 weight = 0;
  i64 expert_bytes = 0;
};

class CsvRows {
 public:
  explicit CsvRows(const std::string& path) : lines_(path) {
    while (lines_.next(line_)) {
      if (line_.starts_with("#")) {
        read_note();
      } else if (!line_.empty()) {
        read_header();
        return;
      }
    }
    fail("{}: no header line \"turn,phase,step,layer,slot,expert,weight\"", path);
  }

  i64 experts_noted() const { return experts_noted_; }
  bool has_bytes() const { return bytes_column_ >= 0; }

  bool next(Row& row) {
    do {
      if (!lines_.next(line_)) return false;
    } while (line_.empty() || line_.starts_with("#"));
    split_fields(line_, ',', fields_);
    std::array<i64*, 6> numbers = {&row.turn, &row.phase, &row.step, &row.layer, &row.slot, &row.expert};
    for (size_t i = 0; i < numbers.size(); i++) read(static_cast<i64>(i), *numbers[i]);
    read(6, row.weight);
    if (has_bytes()) read(bytes_column_, row.expert_bytes);
    for (i64 number : {row.layer, row.slot, row.expert})
      if (number < 0 || number > kMostNumber) fail("{}: line {}: {} is out of range", lines_.path(), lines_.number(), number);
    return true;
  }

 private:
  void read_note() {
    size_t at = line_.find("n_expert=");
    if (at == std::string::npos) return;
    std::string_view text = std::string_view(line_).substr(at + 9);
    parse_field(text.substr(0, text.find(' ')), experts_noted_);
  }

  void read_header() {
    split_fields(line_, ',', fields_);
    for (size_t i = 0; i < kColumns.size(); i++)
      if (i >= fields_.size() || fields_[i] != kColumns[i])
        fail("{}: line {}: the columns must begin with turn,phase,step,layer,slot,expert,weight", lines_.path(),
             lines_.number());
    auto found = std::find(fields_.begin(), fields_.end(), "expert_bytes");
    if (found != fields_.end()) bytes_column_ = found - fields_.begin();
  }

  template <class Number>
  void read(i64 column, Number& number) {
    if (column >= static_cast<i64>(fields_.size()) || !parse_field(fields_[static_cast<size_t>(column)], number))
      fail("{}: line {}: column {} is no number", lines_.path(), lines_.number(), column + 1);
  }

  TextLines lines_;
  std::string line_;
  std::vector<std::string_view> fields_;
  i64 experts_noted_ = 0, bytes_column_ = -1;
};

// Rows of a (turn, phase) come together, but a prompt's may come layer by layer: tokens are collected by step, and leave
// in that order once they are complete.
class CsvTokens {
 public:
  CsvTokens(const TraceHeader& header, const TraceSink& sink, TraceImport& result)
      : header_(header), sink_(sink), result_(result) {}

  void add(const Row& row) {
    if (row.turn != turn_ || row.phase != phase_) finish();
    if (row.turn != turn_) position_ = 0;
    turn_ = row.turn;
    phase_ = row.phase;
    Token& token = tokens_[row.step];
    if (token.filled.empty()) {
      token.record.resize(header_);
      token.filled.resize(static_cast<size_t>(header_.slots()));
    }
    size_t at = static_cast<size_t>((row.layer - header_.first_layer) * header_.top_k + row.slot);
    token.record.ids[at] = static_cast<u16>(row.expert);
    token.record.weights[at] = static_cast<f32>(row.weight);
    if (header_.has_served) token.record.served[at] = row.expert_bytes == 0 ? 1 : 0;
    token.found += token.filled[at] ? 0 : 1;
    token.filled[at] = true;
    while (!tokens_.empty() && complete(tokens_.begin()->second)) leave();
  }

  void finish() {
    while (!tokens_.empty()) leave();
  }

 private:
  struct Token {
    TraceRecord record;
    std::vector<bool> filled;
    i64 found = 0;  // of the slots
  };

  bool complete(const Token& token) const { return token.found == header_.slots(); }

  void leave() {
    Token& token = tokens_.begin()->second;
    if (complete(token)) {
      token.record.sequence = turn_;
      token.record.position = position_;
      token.record.phase = phase_ == 0 ? TracePhase::prompt : TracePhase::decode;
      sink_.record(token.record);
      result_.records++;
    } else {
      result_.incomplete++;
    }
    position_++;
    tokens_.erase(tokens_.begin());
  }

  const TraceHeader& header_;
  const TraceSink& sink_;
  TraceImport& result_;
  std::map<i64, Token> tokens_;  // by step
  i64 turn_ = -1, phase_ = -1, position_ = 0;
};

TraceHeader learn_shape(const std::string& path) {
  CsvRows rows(path);
  TraceHeader h;
  i64 first = kMostNumber, last = -1, most_expert = -1;
  for (Row row; rows.next(row);) {
    first = std::min(first, row.layer);
    last = std::max(last, row.layer);
    h.top_k = std::max(h.top_k, row.slot + 1);
    most_expert = std::max(most_expert, row.expert);
  }
  if (last < 0) fail("{}: no line after the header", path);
  if (rows.experts_noted() > 0 && most_expert >= rows.experts_noted())
    fail("{}: expert {} of n_expert={}", path, most_expert, rows.experts_noted());
  h.model_name = std::filesystem::path(path).filename();
  h.first_layer = first;
  h.layers = last - first + 1;
  h.experts = rows.experts_noted() > 0 ? rows.experts_noted() : most_expert + 1;
  h.has_served = rows.has_bytes();
  check_trace_header(h, path);
  h.model_hash = trace_model_hash(h);
  return h;
}

}  // namespace

TraceImport import_csv(const std::string& path, const TraceSink& sink) {
  TraceImport result;
  result.header = learn_shape(path);
  sink.open(result.header);
  CsvRows rows(path);
  CsvTokens tokens(result.header, sink, result);
  for (Row row; rows.next(row);) tokens.add(row);
  tokens.finish();
  if (result.records == 0) fail("{}: no token has all {} layers with {} ranks", path, result.header.layers, result.header.top_k);
  return result;
}

}  // namespace stoker
