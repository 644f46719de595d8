#include "scheduler/trace/trace_format.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/byte_fields.h"
#include "kernels/base/check.h"
#include "kernels/base/checksum.h"
#include "kernels/base/error.h"
#include "kernels/format/f16.h"

namespace stoker {

namespace {

constexpr u32 kVersion = 1, kDetailedVersion = 2;
constexpr u32 kServedFlag = 1, kStallsFlag = 2, kGuessesFlag = 4;
constexpr i64 kRecordHeadBytes = 16;
constexpr size_t kNameAt = 64, kNameBytes = 64;
constexpr i64 kMostLayers = 4096, kMostExperts = 65536;

}  // namespace

std::string_view name(TracePhase phase) { return phase == TracePhase::prompt ? "prompt" : "decode"; }

i64 TraceHeader::record_bytes() const {
  return kRecordHeadBytes + slots() * (id_bytes() + 2 + (has_served ? 1 : 0)) +
         layers * ((has_stalls ? 2 : 0) + guesses * (id_bytes() + 2));
}

void TraceRecord::resize(const TraceHeader& header) {
  size_t slots = static_cast<size_t>(header.slots());
  ids.resize(slots);
  weights.resize(slots);
  served.resize(header.has_served ? slots : 0);
  stalls.resize(header.has_stalls ? static_cast<size_t>(header.layers) : 0);
  guesses.resize(static_cast<size_t>(header.layers * header.guesses));
  likelihoods.resize(guesses.size());
  scores.clear();
}

void check_trace_header(const TraceHeader& h, std::string_view where) {
  if (h.layers < 1 || h.layers > kMostLayers || h.experts < 1 || h.experts > kMostExperts || h.top_k < 1 ||
      h.top_k > h.experts || h.first_layer < 0 || h.groups < 1 || h.groups_used < 1 || h.groups_used > h.groups ||
      h.experts % h.groups != 0 || h.guesses < 0 || h.guesses > h.experts)
    fail("{}: no router has {} layers, {} of {} experts, {} of {} groups; the header is damaged", where, h.layers,
         h.top_k, h.experts, h.groups_used, h.groups);
}

u64 trace_model_hash(const TraceHeader& h) {
  std::string text = fmt::format("{}|{}|{}|{}|{}|{}|{}", h.model_name, h.layers, h.first_layer, h.experts, h.top_k,
                                 h.groups, h.groups_used);
  return checksum(std::as_bytes(std::span(text)));
}

std::string encode_trace_header(const TraceHeader& h) {
  std::string out(kTraceMagic);
  bool detailed = h.has_stalls || h.guesses > 0;
  put(out, detailed ? kDetailedVersion : kVersion);
  put(out, static_cast<u32>(kTraceHeaderBytes));
  put(out, h.model_hash);
  for (i64 number : {h.layers, h.first_layer, h.experts, h.top_k, h.groups, h.groups_used})
    put(out, static_cast<u32>(number));
  put(out, (h.has_served ? kServedFlag : 0u) | (h.has_stalls ? kStallsFlag : 0u) | (h.guesses > 0 ? kGuessesFlag : 0u));
  put(out, static_cast<u32>(h.record_bytes()));
  put(out, static_cast<u32>(h.guesses));
  out.resize(kNameAt);
  out += h.model_name.substr(0, kNameBytes - 1);
  out.resize(kTraceHeaderBytes);
  return out;
}

TraceHeader decode_trace_header(std::string_view bytes, std::string_view where) {
  if (!bytes.starts_with(kTraceMagic)) {
    if (bytes.size() < kTraceMagic.size() && kTraceMagic.starts_with(bytes))
      fail("{}: the file ends after {} bytes, within the header of a trace; it has no record", where, bytes.size());
    fail("{}: not a routing trace; `stoker run --trace FILE` records one, `stoker trace convert` makes one of text",
         where);
  }
  if (static_cast<i64>(bytes.size()) < kTraceHeaderBytes)
    fail("{}: the file ends after {} bytes, within the header of a trace; it has no record", where, bytes.size());
  std::string_view rest = bytes.substr(kTraceMagic.size());
  u32 version = take<u32>(rest), header_bytes = take<u32>(rest);
  if (version < kVersion || version > kDetailedVersion || header_bytes != kTraceHeaderBytes)
    fail("{}: a trace of version {}; this program reads versions {} to {}", where, version, kVersion, kDetailedVersion);
  TraceHeader h;
  h.model_hash = take<u64>(rest);
  for (i64* number : {&h.layers, &h.first_layer, &h.experts, &h.top_k, &h.groups, &h.groups_used})
    *number = take<u32>(rest);
  u32 flags = take<u32>(rest), record_bytes = take<u32>(rest);
  u32 guesses = take<u32>(rest), known = version == kVersion ? kServedFlag : kServedFlag | kStallsFlag | kGuessesFlag;
  h.has_served = (flags & kServedFlag) != 0;
  h.has_stalls = (flags & kStallsFlag) != 0;
  h.guesses = (flags & kGuessesFlag) != 0 ? static_cast<i64>(guesses) : 0;
  check_trace_header(h, where);
  if ((flags & ~known) != 0 || h.record_bytes() != record_bytes)
    fail("{}: records of {} bytes with flags {:#x} do not fit the shape; the header is damaged", where, record_bytes,
         flags);
  std::string_view text = bytes.substr(kNameAt, kNameBytes);
  h.model_name = text.substr(0, text.find('\0'));
  return h;
}

static void put_ids(const TraceHeader& h, const std::vector<u16>& ids, std::string& out) {
  for (u16 id : ids) h.id_bytes() == 1 ? put(out, static_cast<u8>(id)) : put(out, id);
}

// `per_layer` of them for each layer.
static void take_ids(const TraceHeader& h, i64 per_layer, std::string_view& bytes, i64 index, std::string_view where,
                     std::vector<u16>& ids) {
  for (u16& id : ids) id = h.id_bytes() == 1 ? take<u8>(bytes) : take<u16>(bytes);
  auto bad = std::find_if(ids.begin(), ids.end(), [&](u16 id) { return id >= h.experts; });
  if (bad != ids.end())
    fail("{}: record {} names expert {} of layer {}, which has {}; the file is damaged", where, index, *bad,
         h.first_layer + (bad - ids.begin()) / per_layer, h.experts);
}

void encode_trace_record(const TraceHeader& h, const TraceRecord& r, std::string& out) {
  size_t slots = static_cast<size_t>(h.slots());
  CHECK(r.ids.size() == slots && r.weights.size() == slots && r.served.size() == (h.has_served ? slots : 0));
  for (i64 number : {r.sequence, r.position, r.token}) put(out, static_cast<u32>(number));
  put(out, static_cast<u32>(r.phase));
  put_ids(h, r.ids, out);
  for (f32 weight : r.weights) put(out, f32_to_f16(weight));
  out.append(reinterpret_cast<const char*>(r.served.data()), r.served.size());
  CHECK(r.stalls.size() == (h.has_stalls ? static_cast<size_t>(h.layers) : 0));
  CHECK(r.guesses.size() == static_cast<size_t>(h.layers * h.guesses) && r.likelihoods.size() == r.guesses.size());
  for (u16 stall : r.stalls) put(out, stall);
  put_ids(h, r.guesses, out);
  for (f32 likelihood : r.likelihoods) put(out, f32_to_f16(likelihood));
}

void decode_trace_record(const TraceHeader& h, std::string_view bytes, i64 index, std::string_view where,
                         TraceRecord& r) {
  CHECK(static_cast<i64>(bytes.size()) == h.record_bytes());
  r.resize(h);
  r.sequence = take<u32>(bytes);
  r.position = take<u32>(bytes);
  r.token = take<u32>(bytes);
  u32 phase = take<u32>(bytes);
  if (phase > static_cast<u32>(TracePhase::decode)) fail("{}: record {} has phase {}; the file is damaged", where, index, phase);
  r.phase = static_cast<TracePhase>(phase);
  take_ids(h, h.top_k, bytes, index, where, r.ids);
  for (f32& weight : r.weights) weight = f16_to_f32(take<u16>(bytes));
  for (u8& served : r.served) served = take<u8>(bytes);
  for (u16& stall : r.stalls) stall = take<u16>(bytes);
  take_ids(h, h.guesses, bytes, index, where, r.guesses);
  for (f32& likelihood : r.likelihoods) likelihood = f16_to_f32(take<u16>(bytes));
}

}  // namespace stoker
