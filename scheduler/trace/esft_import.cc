// All layers' files are read side by side, a line (a sequence) of each at a time.
#include <algorithm>
#include <filesystem>

#include "kernels/base/error.h"
#include "scheduler/trace/fields.h"
#include "scheduler/trace/text_import.h"
#include "scheduler/trace/text_lines.h"

namespace stoker {

namespace {

struct LayerFile {
  i64 layer = 0;
  std::string path;
};

// "expert_weights_12.txt" -> 12; -1 when the name has no number there.
i64 layer_of(const std::filesystem::path& path) {
  std::string stem = path.stem();
  size_t digits = stem.find_last_not_of("0123456789") + 1;
  i64 layer = -1;
  parse_field(std::string_view(stem).substr(digits), layer);
  return layer;
}

std::vector<LayerFile> layer_files(const std::string& folder) {
  std::vector<LayerFile> files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    i64 layer = layer_of(entry.path());
    if (entry.path().extension() == ".txt" && layer >= 0) files.push_back({layer, entry.path()});
  }
  if (error) fail("{}: cannot list it: {}", folder, error.message());
  if (files.empty()) fail("{}: no file NAME_LAYER.txt in it", folder);
  std::sort(files.begin(), files.end(), [](const LayerFile& a, const LayerFile& b) { return a.layer < b.layer; });
  for (size_t i = 0; i < files.size(); i++)
    if (files[i].layer != files[0].layer + static_cast<i64>(i))
      fail("{}: the files' layers must follow each other; {} comes after {}", folder, files[i].layer, files[i - 1].layer);
  return files;
}

// One layer's share of a sequence.
struct LayerLine {
  std::vector<u16> ids;
  std::vector<f32> weights;
};

class Sequence {
 public:
  Sequence(const TraceHeader& header, const std::vector<LayerFile>& files) : header_(header), lines_(files.size()) {
    for (const LayerFile& file : files) texts_.emplace_back(file.path);
  }

  // False when all files end; throws when they do not end together.
  bool read() {
    for (size_t l = 0; l < texts_.size(); l++) {
      bool more = texts_[l].next(text_);
      if (l > 0 && more != more_)
        fail("{}: {} lines, {} has another number; all layers must have the same sequences", texts_[l].path(),
             texts_[l].number(), texts_[0].path());
      more_ = more;
      if (more) parse(texts_[l], lines_[l]);
    }
    return more_;
  }

  i64 tokens() const { return static_cast<i64>(lines_[0].ids.size()) / header_.top_k; }

  void fill(i64 token, TraceRecord& record) const {
    for (size_t l = 0; l < lines_.size(); l++)
      for (i64 k = 0; k < header_.top_k; k++) {
        size_t from = static_cast<size_t>(token * header_.top_k + k), to = l * static_cast<size_t>(header_.top_k) + static_cast<size_t>(k);
        record.ids[to] = lines_[l].ids[from];
        record.weights[to] = lines_[l].weights[from];
      }
    sort_by_weight(record);
  }

 private:
  void parse(const TextLines& text, LayerLine& line) {
    split_fields(text_, '\t', fields_);
    auto gap = std::find(fields_.begin(), fields_.end(), "");
    i64 ids = gap - fields_.begin(), weights = fields_.end() - gap - 1;
    if (gap == fields_.end() || ids != weights || ids % header_.top_k != 0)
      fail("{}: line {}: must be ids, {} per token, two tabs, and as many weights", text.path(), text.number(), header_.top_k);
    if (!lines_[0].ids.empty() && &line != &lines_[0] && static_cast<i64>(lines_[0].ids.size()) != ids)
      fail("{}: line {}: {} ids, the first layer has {}", text.path(), text.number(), ids, lines_[0].ids.size());
    line.ids.resize(static_cast<size_t>(ids));
    line.weights.resize(static_cast<size_t>(ids));
    for (i64 i = 0; i < ids; i++) {
      size_t at = static_cast<size_t>(i);
      bool good = parse_field(fields_[at], line.ids[at]) && parse_field(gap[1 + i], line.weights[at]);
      if (!good || line.ids[at] >= header_.experts)
        fail("{}: line {}: {} with weight {} is no expert of {} (--experts says how many there are)", text.path(),
             text.number(), fields_[at], gap[1 + i], header_.experts);
    }
  }

  // The files list a token's experts by number.
  void sort_by_weight(TraceRecord& record) const {
    size_t k = static_cast<size_t>(header_.top_k);
    std::vector<std::pair<f32, u16>> chosen(k);
    for (size_t first = 0; first < record.ids.size(); first += k) {
      for (size_t i = 0; i < k; i++) chosen[i] = {-record.weights[first + i], record.ids[first + i]};
      std::sort(chosen.begin(), chosen.end());
      for (size_t i = 0; i < k; i++) {
        record.weights[first + i] = -chosen[i].first;
        record.ids[first + i] = chosen[i].second;
      }
    }
  }

  const TraceHeader& header_;
  std::vector<TextLines> texts_;
  std::vector<LayerLine> lines_;
  std::string text_;
  std::vector<std::string_view> fields_;
  bool more_ = false;
};

}  // namespace

TraceImport import_esft(const std::string& folder, i64 top_k, i64 experts, const TraceSink& sink) {
  std::vector<LayerFile> files = layer_files(folder);
  TraceImport result;
  TraceHeader& h = result.header;
  std::filesystem::path path(folder);
  h.model_name = "ESFT " + (path.has_filename() ? path : path.parent_path()).filename().string();
  h.layers = static_cast<i64>(files.size());
  h.first_layer = files[0].layer;
  h.experts = experts;
  h.top_k = top_k;
  check_trace_header(h, folder);
  h.model_hash = trace_model_hash(h);
  sink.open(h);
  TraceRecord record;
  record.resize(h);
  record.phase = TracePhase::decode;
  Sequence sequence(h, files);
  for (; sequence.read(); record.sequence++)
    for (record.position = 0; record.position < sequence.tokens(); record.position++) {
      sequence.fill(record.position, record);
      sink.record(record);
      result.records++;
    }
  return result;
}

}  // namespace stoker
