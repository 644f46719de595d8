// A routing trace: which experts the router chose for each token, in rank order, with their gate weights. One file per
// run, appended to while the run lasts, so that what a killed run leaves is a valid trace of what it did.
//
//   header  128 bytes: magic "STKTRACE", u32 version, u32 header bytes, u64 model hash, u32 layers, u32 first layer,
//           u32 experts, u32 top-k, u32 groups, u32 groups used, u32 flags (1: served, 2: stalls, 4: guesses), u32 record
//           bytes, u32 guesses per layer, then the model's name, 0-terminated, in the last 64 bytes
//   record  u32 sequence, u32 position, u32 token, u8 phase, 3 bytes 0
//           ids [layers][top-k]: u8 when there are at most 256 experts, else u16
//           weights [layers][top-k]: f16
//           served [layers][top-k]: u8, where the expert was: 0 disk, 1 RAM, 2 a device, 3 on its way; only with the flag
//           stalls [layers]: u16, 10 us each, nothing to compute for want of an expert; likewise
//           guesses [layers][guesses]: ids like those above, then likelihoods [layers][guesses]: f16, best first, what was
//           expected one layer before; likelihood 0: no guess; likewise
//
// Version 1, which knows neither stalls nor guesses, is written when there are none, and read.
// All numbers little-endian. Layers are those with experts, in order. All records are equally long (1408 bytes for
// DeepSeek-V3), so the number of whole ones follows from the file's size. Plain data; one owner.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

struct TraceHeader {
  std::string model_name;
  u64 model_hash = 0;  // trace_model_hash() of the name and shape
  i64 layers = 0;      // with experts
  i64 first_layer = 0;  // the first of them, dense layers counted
  i64 experts = 0;
  i64 top_k = 0;
  i64 groups = 1, groups_used = 1;
  bool has_served = false;
  bool has_stalls = false;
  i64 guesses = 0;  // per layer

  i64 slots() const { return layers * top_k; }
  i64 id_bytes() const { return experts <= 256 ? 1 : 2; }
  i64 record_bytes() const;
};

enum class TracePhase : u8 { prompt = 0, decode = 1 };
std::string_view name(TracePhase phase);  // "prompt"

struct TraceRecord {
  static constexpr i64 kNoToken = 0xffffffff;  // the source did not tell

  i64 sequence = 0;
  i64 position = 0;
  i64 token = kNoToken;
  TracePhase phase = TracePhase::decode;
  std::vector<u16> ids;      // [layers, top_k]
  std::vector<f32> weights;  // [layers, top_k]
  std::vector<u8> served;    // [layers, top_k] with has_served, else empty
  std::vector<u16> stalls = {};       // [layers] with has_stalls, 10 us each
  std::vector<u16> guesses = {};      // [layers, guesses], best first
  std::vector<f32> likelihoods = {};  // of the guesses
  std::vector<f32> scores = {};   // [layers, experts], what the choice was made by; empty: not known. Not in files

  // Makes room for a trace of this shape.
  void resize(const TraceHeader& header);
};

// Somewhere records come from, one after the other.
class TraceSource {
 public:
  virtual ~TraceSource() = default;
  virtual const TraceHeader& header() const = 0;
  // False at the end. Throws Error for a damaged record.
  virtual bool next(TraceRecord& record) = 0;
};

constexpr i64 kTraceHeaderBytes = 128;
constexpr std::string_view kTraceMagic = "STKTRACE";

// Throws Error ("{where}: ...") for a shape no trace can have.
void check_trace_header(const TraceHeader& header, std::string_view where);
u64 trace_model_hash(const TraceHeader& header);

std::string encode_trace_header(const TraceHeader& header);
// `bytes` is the file's beginning, at most kTraceHeaderBytes. Throws Error: no trace, other version, cut, senseless.
TraceHeader decode_trace_header(std::string_view bytes, std::string_view where);

// Appends the record's bytes.
void encode_trace_record(const TraceHeader& header, const TraceRecord& record, std::string& out);
// `bytes` has record_bytes(). Throws Error for ids out of range; `index` is the record's number, for the text.
void decode_trace_record(const TraceHeader& header, std::string_view bytes, i64 index, std::string_view where,
                         TraceRecord& record);

}  // namespace stoker
