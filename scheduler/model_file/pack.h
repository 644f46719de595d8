// A pack: a model's file with the experts laid out for streaming. It is a GGUF file and holds all of the model:
// metadata and all other tensors are as in the original; instead of blk.N.ffn_{gate,up,down}_exps it has for every
// MoE layer the bytes blk.N.experts.packed.S (I8 [record, experts]): one record per expert, gate | up | down without
// gaps, padded to 4096 bytes and beginning at a multiple of 4096. So an expert is one aligned read. Blocks are as in
// the original, bit for bit.
//
// A striped pack is spread over several drives: expert e of the l-th MoE layer is in stripe (l + e) % n, at place
// e / n of that stripe's tensor. Stripe 0 is the main file, the one that users name; the others are GGUF files with
// nothing but their tensors, and carry the main file's id, so that a mix-up is noticed.
//
// Keys of the main file (all required unless said otherwise):
//   stoker.pack.version           u32   1
//   stoker.pack.layers            i32[] numbers of the MoE layers, ascending
//   stoker.pack.{gate,up,down}_types  i32[] per layer the block type (GGUF's number)
//   stoker.pack.checksums         u64[] per layer and expert: XXH3 of gate | up | down
//   stoker.pack.tensor_checksums  u64[] per other tensor, in the order of the file
//   stoker.pack.id                string, striped only: the same in all files
//   stoker.pack.stripes           string[], striped only: paths of stripes 1, 2 ..., as they were written
// Keys of the others: stoker.pack.version, stoker.pack.id, stoker.pack.stripe (u32, from 1 on), stoker.pack.main.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/types.h"
#include "scheduler/model_file/expert_table.h"

namespace stoker {

class Gguf;
struct GgufTensor;

constexpr i64 kPackVersion = 1;
constexpr i64 kPackAlignment = 4096;  // of records
constexpr i64 kPackStripes = 64;      // at most

// "blk.3.experts.packed.0"
std::string packed_tensor_name(LayerId layer, i64 stripe);
bool is_packed_tensor(std::string_view name);

// Where an expert is: stripe, and place in the stripe's tensor of its layer.
struct StripePlace {
  i64 stripe = 0, record = 0;
};
StripePlace stripe_place(i64 moe_layer, ExpertId expert, i64 stripes);
// Records of a layer in a stripe.
i64 stripe_records(i64 moe_layer, i64 experts, i64 stripe, i64 stripes);

// The file name of stripe `stripe` >= 1 of a pack whose main file is `main`, without folder.
std::string stripe_file_name(const std::string& main, i64 stripe, i64 stripes);

bool is_pack(const Gguf& gguf);
i64 pack_stripes(const Gguf& gguf);  // 1 when not striped
// Paths of the other stripes of a pack's main file: where they were written, or beside the main file. Throws Error
// naming those that are in neither place.
std::vector<std::string> find_stripes(const Gguf& main);
// What `stripe` (the header of one of those files) says must agree with the main file. Throws Error.
void check_stripe(const Gguf& main, const Gguf& stripe, i64 number);

// The layers as ExpertTable wants them. Everything in the file is compared with `shape` and with what the file can
// hold. Throws Error naming file and key or tensor.
std::vector<ExpertLayer> read_packed_layers(const Gguf& gguf, const ExpertTable::Shape& shape);

// Every tensor that is not packed, in the order of stoker.pack.tensor_checksums.
std::vector<const GgufTensor*> plain_tensors(const Gguf& pack);

}  // namespace stoker
