// The CPU's ops, one file per noun; ops.cc puts them into the table.
#pragma once

#include "kernels/ops.h"

namespace stoker::cpu {

void quantize(Stream&, const QuantizeArgs&);
void matmul(Stream&, const MatmulArgs&);
void head_matmul(Stream&, const HeadMatmulArgs&);
void rms_norm(Stream&, const RmsNormArgs&);
void attention_rows(Stream&, const AttentionRowsArgs&);
void expert_ffn(Stream&, const ExpertFfnArgs&);
void latent_attention(Stream&, const LatentAttentionArgs&);
void prompt_attention(Stream&, const PromptAttentionArgs&);
void route(Stream&, const RouteArgs&);
void combine(Stream&, const CombineArgs&);
void add(Stream&, f32* y, const f32* x, i64 count);
void store_latents(Stream&, const StoreLatentsArgs&);
void dequantize(Stream&, BlockType, const void* blocks, f32* y, i64 count);

}  // namespace stoker::cpu
