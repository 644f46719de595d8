#include "scheduler/model_file/pack_check.h"

#include <algorithm>

#include "kernels/base/buffer.h"
#include "kernels/base/checksum.h"
#include "kernels/base/error.h"
#include "scheduler/model_file/gguf.h"
#include "scheduler/model_file/model_bytes.h"
#include "scheduler/model_file/pack.h"

namespace stoker {

namespace {

constexpr i64 kPiece = 16 * kMiB;

// What has one checksum.
struct Part {
  i32 file;
  i64 offset, bytes;
  u64 expected;
  std::string name;
};

std::vector<Part> plain_parts(const Gguf& pack) {
  constexpr std::string_view kKey = "stoker.pack.tensor_checksums";
  std::vector<const GgufTensor*> tensors = plain_tensors(pack);
  const GgufValue* value = pack.find(kKey);
  const auto* sums = value == nullptr ? nullptr : std::get_if<std::vector<u64>>(&value->value);
  if (sums == nullptr || sums->size() != tensors.size())
    fail("{}: metadata key '{}' must have {} values (U64): the file is damaged", pack.path(), kKey, tensors.size());
  std::vector<Part> parts;
  for (size_t i = 0; i < tensors.size(); i++)
    parts.push_back({tensors[i]->file, tensors[i]->offset, tensors[i]->bytes, (*sums)[i],
                     fmt::format("tensor '{}'", tensors[i]->name)});
  return parts;
}

std::vector<Part> expert_parts(const ExpertTable& experts) {
  std::vector<Part> parts;
  for (const ExpertLayer& layer : experts.layers())
    for (i64 e = 0; e < experts.experts_per_layer(); e++) {
      const ExpertPlace& place = layer.packed[static_cast<size_t>(e)];
      parts.push_back({place.file, place.offset, experts.expert_bytes(layer.layer),
                       layer.checksums[static_cast<size_t>(e)],
                       fmt::format("layer {}, expert {}", layer.layer.value, e)});
    }
  return parts;
}

}  // namespace

PackCheck check_pack(const Gguf& pack, const ExpertTable& experts, const std::function<void(i64, i64)>& progress) {
  if (!is_pack(pack)) fail("{}: not a packed model: it has no checksums", pack.path());
  std::vector<Part> parts = plain_parts(pack);
  PackCheck check{.tensors = static_cast<i64>(parts.size()), .damaged = {}};
  std::vector<Part> more = expert_parts(experts);
  check.experts = static_cast<i64>(more.size());
  parts.insert(parts.end(), more.begin(), more.end());
  std::stable_sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) {
    return std::pair(a.file, a.offset) < std::pair(b.file, b.offset);
  });
  i64 total = 0;
  for (const Part& part : parts) total += part.bytes;

  ModelBytes bytes(pack);
  Buffer buffer(kPiece, "checking a pack");
  Checksummer checksummer;
  for (const Part& part : parts) {
    for (i64 at = 0; at < part.bytes; at += kPiece) {
      std::span<std::byte> piece = buffer.as<std::byte>(std::min(kPiece, part.bytes - at));
      bytes.read(part.file, part.offset + at, piece);
      checksummer.add(piece);
      check.bytes += static_cast<i64>(piece.size());
      if (progress) progress(check.bytes, total);
    }
    if (checksummer.take() == part.expected) continue;
    check.damaged.push_back(fmt::format("{}: the data does not match its checksum ({}, {} bytes from offset {} on)",
                                        part.name, pack.files()[static_cast<size_t>(part.file)].path, part.bytes,
                                        part.offset));
  }
  return check;
}

}  // namespace stoker
