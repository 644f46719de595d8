#include "tests/fuzz/gguf_target.h"

#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "scheduler/model_file/expert_table.h"
#include "scheduler/model_file/gguf.h"
#include "scheduler/model_file/pack.h"

namespace stoker::test {

template <class Action>
static void may_fail(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    CHECK(std::string_view(error.what()).starts_with("fuzz.gguf: "));
  }
}

static void check_tensors(const Gguf& gguf, i64 file_bytes) {
  for (const GgufTensor& tensor : gguf.tensors()) {
    CHECK(tensor.offset > 0 && tensor.bytes > 0 && tensor.offset <= file_bytes - tensor.bytes);
    CHECK(tensor.bytes == row_bytes(tensor.type, tensor.cols()) * tensor.rows());
    CHECK(gguf.find_tensor(tensor.name) == &tensor);
  }
}

static void check_values(const Gguf& gguf) {
  for (const auto& [key, value] : gguf.metadata()) {
    CHECK(gguf.find(key) == &value);
    may_fail([&, k = key] { gguf.need_int(k); });
    may_fail([&, k = key] { gguf.need_float(k); });
    may_fail([&, k = key] { gguf.get_bool(k); });
    may_fail([&, k = key] { gguf.need_string(k); });
    may_fail([&, k = key] { gguf.get_ints(k); });
    may_fail([&, k = key] { gguf.get_floats(k); });
    may_fail([&, k = key] { gguf.get_strings(k); });
  }
}

// The shape as the tensors themselves claim it, so that the offsets of experts are computed for odd shapes too.
static void check_experts(const Gguf& gguf, i64 file_bytes) {
  const GgufTensor* down = gguf.find_tensor("blk.1.ffn_down_exps.weight");
  if (down == nullptr || down->shape.size() != 3) return;
  ExpertTable::Shape shape{1, 2, down->shape[2], 1, down->shape[1], down->shape[0]};
  if (shape.ffn > file_bytes) return;  // twice that must not overflow
  ExpertTable table = ExpertTable::from_gguf(gguf, shape);
  for (ExpertMatrix matrix : {ExpertMatrix::gate, ExpertMatrix::up, ExpertMatrix::down}) {
    Extent last = table.extent(LayerId(1), ExpertId(shape.experts - 1), matrix);
    CHECK(last.offset > 0 && last.bytes > 0 && last.offset <= file_bytes - last.bytes);
  }
}

// The same for a pack: its shape must come from the metadata.
static void check_pack(const Gguf& gguf, i64 file_bytes) {
  if (!is_pack(gguf)) return;
  ExpertTable::Shape shape{.first_layer = 1,
                           .end_layer = 2,
                           .experts = gguf.need_int("deepseek2.expert_count"),
                           .top_k = 1,
                           .hidden = gguf.need_int("deepseek2.embedding_length"),
                           .ffn = gguf.need_int("deepseek2.expert_feed_forward_length")};
  if (shape.experts < 1 || shape.hidden < 1 || shape.ffn < 1) return;  // refused with the hyperparameters
  ExpertTable table = ExpertTable::from_gguf(gguf, shape);
  for (i64 e = 0; e < shape.experts; e++) {
    Extent first = table.extent(LayerId(1), ExpertId(e), ExpertMatrix::gate);
    i64 bytes = table.expert_bytes(LayerId(1));
    CHECK(first.offset > 0 && bytes > 0 && first.offset <= file_bytes - bytes);
    CHECK(table.checksum(LayerId(1), ExpertId(e)) != nullptr);
  }
}

bool fuzz_gguf(std::string_view bytes) {
  bool accepted = false;
  may_fail([&] {
    Gguf gguf = Gguf::parse(bytes, "fuzz.gguf");
    accepted = true;
    check_tensors(gguf, static_cast<i64>(bytes.size()));
    check_values(gguf);
    may_fail([&] { check_experts(gguf, static_cast<i64>(bytes.size())); });
    may_fail([&] { check_pack(gguf, static_cast<i64>(bytes.size())); });
  });
  return accepted;
}

}  // namespace stoker::test
