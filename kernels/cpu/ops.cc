#include "kernels/ops.h"

#include "kernels/cpu/cpu_ops.h"

namespace stoker {

const Ops& cpu_ops() {
  static constexpr Ops kOps{.name = "cpu",
                            .quantize = cpu::quantize,
                            .matmul = cpu::matmul,
                            .head_matmul = cpu::head_matmul,
                            .rms_norm = cpu::rms_norm,
                            .attention_rows = cpu::attention_rows,
                            .expert_ffn = cpu::expert_ffn,
                            .latent_attention = cpu::latent_attention,
                            .prompt_attention = cpu::prompt_attention,
                            .route = cpu::route,
                            .combine = cpu::combine,
                            .add = cpu::add,
                            .store_latents = cpu::store_latents,
                            .dequantize = cpu::dequantize,
                            .hand_over = nullptr,
                            .pack = nullptr,
                            .unpack = nullptr};
  return kOps;
}

}  // namespace stoker
