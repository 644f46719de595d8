// The ops that are more than one launch, a file each; cuda_ops.cc puts them into the table.
#pragma once

#include "kernels/ops.h"

namespace stoker::cuda {

void expert_ffn(Stream& stream, const ExpertFfnArgs& args);
void attention_rows_op(Stream& stream, const AttentionRowsArgs& args);
void latent_attention_op(Stream& stream, const LatentAttentionArgs& args);
// By latent attention, for batches of the chunk's tokens: 3.4 times the flops of rebuilt keys and values in V3, but
// nothing is rebuilt.
void prompt_attention(Stream& stream, const PromptAttentionArgs& args);
i64 attention_scratch_bytes(const AttentionShape& shape);

}  // namespace stoker::cuda
