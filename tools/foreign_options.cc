#include "tools/foreign_options.h"

#include <array>

#include "tools/names.h"

namespace stoker {

namespace {

constexpr std::string_view kPlacesItself =
    "stoker places weights itself; leave it out. --device and --vram say where besides the CPU, --ram SIZE sets "
    "the memory for experts";
constexpr std::string_view kNoOverride =
    "experts need no placement rules: those that do not fit in --ram SIZE stream from disk";
constexpr std::string_view kNotMapped =
    "weights are read into memory once and experts stream with direct reads, nothing is mapped; leave it out";
constexpr std::string_view kAttention =
    "attention has one implementation here, chosen by itself; leave it out";
constexpr std::string_view kCacheType =
    "keys and values are one compressed latent here; --cache-type sets the type of both";
constexpr std::string_view kExpertCache = "use --ram SIZE, the memory that experts may use";
constexpr std::string_view kSpeculation = "there is no speculative decoding in this version; leave it out";
constexpr std::string_view kSubset =
    "every expert that the router picks is computed; there is no option that skips some";
constexpr std::string_view kNuma = "workers are pinned to one physical core each; -t N sets their number";

constexpr std::array kForeign = {
    ForeignOption{"-ngl, --gpu-layers, --n-gpu-layers", true, kPlacesItself},
    ForeignOption{"-sm, --split-mode", true, kPlacesItself},
    ForeignOption{"-ts, --tensor-split", true, kPlacesItself},
    ForeignOption{"-mg, --main-gpu", true, kPlacesItself},
    ForeignOption{"-dev, --device", true, kPlacesItself},
    ForeignOption{"-nkvo, --no-kv-offload", false, kPlacesItself},
    ForeignOption{"-fit, --fit", false, kPlacesItself},
    ForeignOption{"--fit-margin", true, kPlacesItself},
    ForeignOption{"--gpu-fit-margin", true, kPlacesItself},
    ForeignOption{"-grt, --graph-reduce-type", true, kPlacesItself},
    ForeignOption{"-ot, --override-tensor", true, kNoOverride},
    ForeignOption{"-cmoe, --cpu-moe", false, kNoOverride},
    ForeignOption{"-ncmoe, --n-cpu-moe", true, kNoOverride},
    ForeignOption{"--defer-experts", false, kNoOverride},
    ForeignOption{"--prefetch-experts", false, kNoOverride},
    ForeignOption{"--prefetch-experts-threads", true, kNoOverride},
    ForeignOption{"--moe-cache", true, kExpertCache},
    ForeignOption{"--moe-expert-cache", true, kExpertCache},
    ForeignOption{"--moe-expert-cache-size", true, kExpertCache},
    ForeignOption{"--moe-stream-cache", true, kExpertCache},
    ForeignOption{"--pin-hot-experts", true, kExpertCache},
    ForeignOption{"-cram, --cache-ram", true,
                  "the prompt cache of a server; --ram SIZE is the memory for experts"},
    ForeignOption{"--mlock", false,
                  "weights live in memory of their own and are not swapped in from the file; leave it out"},
    ForeignOption{"--no-mmap", false, kNotMapped},
    ForeignOption{"--mmap", false, kNotMapped},
    ForeignOption{"--load-mode", true, kNotMapped},
    ForeignOption{"-dio, --direct-io", false,
                  "reads are direct where the file system allows; --io uring|pread chooses how"},
    ForeignOption{"-fa, --flash-attn", false, kAttention},
    ForeignOption{"-mla, --mla-use", true, kAttention},
    ForeignOption{"-amb, --attention-max-batch", true, kAttention},
    ForeignOption{"-fmoe, --fused-moe", false, "experts are always computed fused; leave it out"},
    ForeignOption{"-rtr, --run-time-repack", false, "weights are used as the file has them; leave it out"},
    ForeignOption{"-ser, --smart-expert-reduction", true, kSubset},
    ForeignOption{"-ctv, --cache-type-v", true, kCacheType},
    ForeignOption{"-ub, --ubatch-size", true,
                  "-b N is the number of prompt tokens computed together; there is no second size"},
    ForeignOption{"-tb, --threads-batch", true, "-t N is used for prompt and answer"},
    ForeignOption{"-C, --cpu-mask", true,
                  "workers are pinned to the cores this process may use: start it with taskset"},
    ForeignOption{"--cpu-range", true,
                  "workers are pinned to the cores this process may use: start it with taskset"},
    ForeignOption{"--numa", true, kNuma},
    ForeignOption{"--spec-type", true, kSpeculation},
    ForeignOption{"--spec-draft-n-max", true, kSpeculation},
    ForeignOption{"-md, --model-draft", true, kSpeculation},
    ForeignOption{"--draft, --draft-max, --draft-n", true, kSpeculation},
    ForeignOption{"--metrics, --slots, --props", false, "`stoker serve` always has these endpoints; leave it out"},
    ForeignOption{"--dry-run", false, "`stoker inspect MODEL --ram SIZE` shows what would fit"},
    ForeignOption{"-cnv, --conversation", false, "use --chat"},
    ForeignOption{"-i, --interactive", false, "use --chat"},
    ForeignOption{"-if, --interactive-first", false, "use --chat"},
    ForeignOption{"-no-cnv, --no-conversation", false,
                  "without --chat one answer is given; --raw leaves the chat template out"},
    ForeignOption{"--jinja", false,
                  "the chat format is recognised from the file's template; leave it out (`stoker run` has --raw)"},
    ForeignOption{"--chat-template", true,
                  "the chat format is recognised from the file's template; leave it out (`stoker run` has --raw)"},
    ForeignOption{"--no-display-prompt", false, "only the answer is printed; leave it out"},
    ForeignOption{"--simple-io", false,
                  "plain output is used wherever stderr is not a terminal; leave it out"},
    ForeignOption{"--ignore-eos", false, "an answer ends where the model ends it; -n N limits it"},
    ForeignOption{"--warmup, --no-warmup", false, "bench always warms up before it measures; leave it out"},
    ForeignOption{"--log-disable", false, "stdout carries only the answer: send stderr to /dev/null"},
    ForeignOption{"--webui, --no-webui", false, "the page at / is always there; leave it out"},
    ForeignOption{"--threads-http", true, "there are --parallel + --queue + 32 threads for connections; leave it out"},
    ForeignOption{"-cb, --cont-batching, --no-cont-batching", false, "sequences always decode together, up to --parallel; leave it out"},
    ForeignOption{"-to, --timeout", true, "time limits of connections are fixed; leave it out"},
    ForeignOption{"--path, --api-prefix, --ssl-key-file, --ssl-cert-file", true,
                  "leave it to a front server: tools/Caddyfile and tools/nginx.conf are examples"},
    ForeignOption{"--embedding, --embeddings, --rerank, --reranking", false, "this server generates text alone; leave it out"},
    ForeignOption{"--reasoning-format", true, "thoughts come as reasoning_content; a request's reasoning_format says otherwise"},
    ForeignOption{"--reasoning-budget", true, "--thinking lets the model think before it answers, where its format has the choice"},
    ForeignOption{"-hf, --hf-repo", true, "stoker downloads nothing: give -m FILE"},
    ForeignOption{"-mu, --model-url", true, "stoker downloads nothing: give -m FILE"},
};

}  // namespace

const ForeignOption* find_foreign_option(std::string_view name) {
  for (const ForeignOption& option : kForeign) {
    if (has_name(option.names, name)) return &option;
  }
  return nullptr;
}

}  // namespace stoker
