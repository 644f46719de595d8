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

constexpr u32 kVersion = 1;
constexpr u32 kServedFlag = 1;
constexpr i64 kRecordHeadBytes = 16;
constexpr size_t kNameAt = 64, kNameBytes = 64;
constexpr i64 kMostLayers = 4096, kMostExperts = 65536;

}  // namespace

std::string_view name(TracePhase phase) { return phase == TracePhase::prompt ? "prompt" : "decode"; }

i64 TraceHeader::record_bytes() const { return kRecordHeadBytes + slots() * (id_bytes() + 2 + (has_served ? 1 : 0)); }

void TraceRecord::resize(const TraceHeader& header) {
  size_t slots = static_cast<size_t>(header.slots());
  ids.resize(slots);
  weights.resize(slots);
  served.resize(header.has_served ? slots : 0);
  scores.clear();
}

void check_trace_header(const TraceHeader& h, std::string_view where) {
  if (h.layers < 1 || h.layers > kMostLayers || h.experts < 1 || h.experts > kMostExperts || h.top_k < 1 ||
      h.top_k > h.experts || h.first_layer < 0 || h.groups < 1 || h.groups_used < 1 || h.groups_used > h.groups ||
      h.experts % h.groups != 0)
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
  put(out, kVersion);
  put(out, static_cast<u32>(kTraceHeaderBytes));
  put(out, h.model_hash);
  for (i64 number : {h.layers, h.first_layer, h.experts, h.top_k, h.groups, h.groups_used})
    put(out, static_cast<u32>(number));
  put(out, h.has_served ? kServedFlag : 0u);
  put(out, static_cast<u32>(h.record_bytes()));
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
  if (version != kVersion || header_bytes != kTraceHeaderBytes)
    fail("{}: a trace of version {}; this program reads version {}", where, version, kVersion);
  TraceHeader h;
  h.model_hash = take<u64>(rest);
  for (i64* number : {&h.layers, &h.first_layer, &h.experts, &h.top_k, &h.groups, &h.groups_used})
    *number = take<u32>(rest);
  u32 flags = take<u32>(rest), record_bytes = take<u32>(rest);
  h.has_served = (flags & kServedFlag) != 0;
  check_trace_header(h, where);
  if ((flags & ~kServedFlag) != 0 || h.record_bytes() != record_bytes)
    fail("{}: records of {} bytes with flags {:#x} do not fit the shape; the header is damaged", where, record_bytes,
         flags);
  std::string_view text = bytes.substr(kNameAt, kNameBytes);
  h.model_name = text.substr(0, text.find('\0'));
  return h;
}

void encode_trace_record(const TraceHeader& h, const TraceRecord& r, std::string& out) {
  size_t slots = static_cast<size_t>(h.slots());
  CHECK(r.ids.size() == slots && r.weights.size() == slots && r.served.size() == (h.has_served ? slots : 0));
  for (i64 number : {r.sequence, r.position, r.token}) put(out, static_cast<u32>(number));
  put(out, static_cast<u32>(r.phase));
  if (h.id_bytes() == 1) {
    for (u16 id : r.ids) out += static_cast<char>(id);
  } else {
    out.append(reinterpret_cast<const char*>(r.ids.data()), slots * 2);
  }
  for (f32 weight : r.weights) put(out, f32_to_f16(weight));
  out.append(reinterpret_cast<const char*>(r.served.data()), r.served.size());
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
  for (u16& id : r.ids) id = h.id_bytes() == 1 ? take<u8>(bytes) : take<u16>(bytes);
  auto bad = std::find_if(r.ids.begin(), r.ids.end(), [&](u16 id) { return id >= h.experts; });
  if (bad != r.ids.end())
    fail("{}: record {} names expert {} of layer {}, which has {}; the file is damaged", where, index, *bad,
         h.first_layer + (bad - r.ids.begin()) / h.top_k, h.experts);
  for (f32& weight : r.weights) weight = f16_to_f32(take<u16>(bytes));
  for (u8& served : r.served) served = take<u8>(bytes);
}

}  // namespace stoker
