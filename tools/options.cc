#include "tools/options.h"

#include <fmt/format.h>

#include <array>
#include <limits>

#include "kernels/format/block_type.h"

namespace stoker {

namespace {

constexpr u32 bit(Command c) { return static_cast<u32>(c); }
constexpr u32 kRun = bit(Command::run);
constexpr u32 kInspect = bit(Command::inspect);
constexpr u32 kTokenize = bit(Command::tokenize);
constexpr u32 kEval = bit(Command::eval);
constexpr u32 kBench = bit(Command::bench);
constexpr u32 kSynth = bit(Command::synth);
constexpr u32 kPack = bit(Command::pack);
constexpr u32 kSimulate = bit(Command::simulate) | bit(Command::plan);
constexpr u32 kTrace = bit(Command::trace);
constexpr u32 kServe = bit(Command::serve);
constexpr u32 kTune = bit(Command::tune);
constexpr u32 kDevices = bit(Command::devices);
constexpr u32 kChunked = kRun | kEval | kBench;
constexpr u32 kEngine = kChunked | kServe;  // commands that compute
constexpr f64 kMany = 1 << 30;

constexpr std::string_view kIsaChoices = "ref|avx2|avx512";
constexpr std::string_view kIoChoices = "auto|uring|pread";
constexpr std::string_view kPolicyChoices = "auto|ema|lru|lfu|slru|s3fifo|least-stale|mrs|static";
constexpr std::string_view kPredictorChoices = "none|previous|count|pair|gate|gate+shared";
constexpr std::string_view kPrefetchChoices = "on|off|auto";
constexpr std::string_view kCacheChoices = "f16|q8_0|f32";
constexpr std::string_view kLogChoices = "text|json";
constexpr std::string_view kFormatChoices = "md|json|csv";
constexpr std::string_view kProfileChoices = "pessimistic|mid|default|optimistic";
constexpr std::string_view kShapeChoices = "deepseek-v3|kimi-k2|deepseek-v2-lite|tiny";

using O = Options;

constexpr std::array kRows = {
    OptionRow{kEngine | kInspect | kTokenize | kPack | kSimulate | kTune, "-m, --model", "FILE", &O::model,
              "GGUF file; of a split model its first shard"},

    // Text in.
    OptionRow{kRun, "-p, --prompt", "TEXT", &O::prompt, "what to answer"},
    OptionRow{kTokenize, "-p, --prompt", "TEXT", &O::prompt, "text to turn into ids"},
    OptionRow{kRun, "-f, --file", "FILE", &O::file, "read the prompt from FILE; - is stdin"},
    OptionRow{kTokenize, "-f, --file", "FILE", &O::file, "read the text from FILE; - is stdin"},
    OptionRow{kEval, "-f, --file", "FILE", &O::file, "text to judge; - is stdin"},
    OptionRow{kBench, "-f, --file", "FILE", &O::file,
              "text to feed; - is stdin (default: one that is built in)"},
    OptionRow{kRun, "-sys, --system-prompt", "TEXT", &O::system_prompt,
              "system message of the chat template"},
    OptionRow{kRun, "--raw", "", &O::raw, "continue the prompt as it is, without the file's chat template"},
    OptionRow{kRun, "--chat", "", &O::chat, "hold a conversation; -p is its first message"},
    OptionRow{kRun | kServe, "--thinking", "", &O::thinking,
              "let the model think before it answers, where its format has the choice"},
    OptionRow{kEval, "--tokens", "FILE", &O::tokens_file,
              "token ids to judge, separated by white space; - is stdin"},
    OptionRow{kTokenize, "--stdin", "", &O::from_stdin, "read from stdin"},
    OptionRow{kTokenize | kEval, "--no-bos", "", &O::no_bos, "do not put the begin-of-text token first"},
    OptionRow{kTokenize, "--decode", "", &O::decode, "the input is ids: print their text"},

    // How much.
    OptionRow{kRun | kServe, "-n, --n-predict", "N", &O::predict, "most tokens to generate; -1: until the model ends",
              -1, kMany},
    OptionRow{kBench, "-p, --n-prompt", "N", &O::bench_prompt, "tokens of the prompt test; 0: none", 0,
              kMany},
    OptionRow{kBench, "-n, --n-gen", "N", &O::bench_generate, "tokens of the generation test; 0: none", 0,
              kMany},
    OptionRow{kBench, "-d, --n-depth", "N", &O::bench_depth, "tokens that are in the context before each test", 0,
              kMany},
    OptionRow{kBench, "-r, --repetitions", "N", &O::repetitions, "times each test is measured", 1, 10000},
    OptionRow{kRun | kEval, "-c, --ctx-size", "N", &O::context, "most tokens of prompt and answer together",
              1, kMany},
    OptionRow{kServe, "-c, --ctx-size", "N", &O::context, "most tokens of prompt and answer together, of each slot", 1,
              kMany},
    OptionRow{kRun | kBench, "-b, --batch-size", "N", &O::batch,
              "prompt tokens computed together; 0: 512, or up to 2048 where experts stream from disk, no device computes, and memory is free for that",
              0, kMostBatch},
    OptionRow{kEval, "-b, --batch-size", "N", &O::batch, "tokens computed together; 0: 512", 0, kMostBatch},
    OptionRow{kServe, "-b, --batch-size", "N", &O::serve_batch,
              "prompt tokens computed together; others' tokens come in between; 0: 128, or 512 where experts stream from disk", 0,
              kMostBatch},

    // serve
    OptionRow{kServe, "--host", "ADDRESS", &O::host, "address to listen on"},
    OptionRow{kServe, "--port", "N", &O::port, "port to listen on; 0: any that is free", 0, 65535},
    OptionRow{kServe, "--api-key", "KEY", &O::api_key, "answer only requests that send this key"},
    OptionRow{kServe, "--api-key-file", "FILE", &O::api_key_file, "the same with a file of keys, one a line, which `ps` does not show"},
    OptionRow{kServe, "--cors", "ORIGIN,...", &O::cors,
              "let pages of these origins (https://chat.example.org), or of all (*), ask from a browser (default: only the server's own)"},
    OptionRow{kServe, "-a, --alias", "NAME", &O::alias, "the model's name in answers (default: the file's)"},
    OptionRow{kServe, "-np, --parallel", "N", &O::parallel, "slots: answers that are generated at the same time", 1, 256},
    OptionRow{kServe, "--machine", "FILE", &O::limits_of,
              "speeds that `stoker tune` measured: the page and /metrics show disk and memory as share of them; auto: what it kept of "
              "this machine, if anything; none: do without"},
    OptionRow{kServe, "--slot-save-path", "DIR", &O::slot_save_path,
              "folder that POST /slots/ID?action=save and restore write to and read from (default: refused)"},
    OptionRow{kServe, "--queue", "N", &O::queue, "requests that may wait for a slot; more are refused (429)", 0, 10000},

    OptionRow{kServe, "--drain-timeout", "SECONDS", &O::drain_seconds,
              "how long running answers may go on after SIGTERM", 0, 86400},
    OptionRow{kServe, "--log-format", kLogChoices, &O::log_format, "lines on stderr: plain, or an object each"},

    // Where and how.
    OptionRow{kSimulate, "-c, --ctx-size", "N", &O::context,
              "tokens in the context, whose KV cache every token reads", 1, kMany},

    OptionRow{kEngine | kInspect | kSimulate | kTune, "--ram", "SIZE", &O::ram,
              "memory for routed experts, such as 100G, 8GiB, 512M (default: what is free, less a margin)"},
    OptionRow{kEngine, "--device", "LIST", &O::device,
              "who computes beside the CPU: auto, cpu, cuda:0,1 or host:N,...; see `stoker help devices`"},
    OptionRow{kEngine, "--vram", "SIZE[,SIZE]", &O::vram,
              "memory of each device for weights and KV cache: what every token reads, then routed experts (default: what is free there)"},
    OptionRow{kEngine | kSimulate, "--split-heads", "N", &O::split_heads,
              "positions of a context behind which two devices share the heads of a layer, which takes a copy of its KV cache; 0: never", 0,
              kMany},
    OptionRow{kDevices, "--device", "LIST", &O::device, "what to list: auto, cuda:0,1 or host:N,..."},
    OptionRow{kSimulate, "--vram", "SIZE[,SIZE...]", &O::vram,
              "memory of the GPUs for routed experts, the same for each or one by one; 0: none (default: all that is left)"},
    OptionRow{kEngine | kTune, "-t, --threads", "N", &O::threads, "compute threads; 0: one per physical core", 0,
              1024},
    OptionRow{kEngine, "--exact", "", &O::exact,
              "float activations everywhere: slower, the reference arithmetic"},
    OptionRow{kEngine, "-ctk, --cache-type-k, --cache-type", kCacheChoices, &O::cache_type,
              "numbers of the KV cache: q8_0 halves it (default: f16, with --exact f32)"},
    OptionRow{kEngine, "--isa", kIsaChoices, &O::isa,
              "best instruction set to use (default: what this CPU has)"},
    OptionRow{kEngine, "--io", kIoChoices, &O::io, "how experts are read from disk"},
    OptionRow{kRun | kBench | kServe | kSimulate, "--policy", kPolicyChoices, &O::policy,
              "which experts stay in memory; never changes an answer"},
    OptionRow{kRun | kServe, "--popularity", "FILE", &O::popularity,
              "begin with how popular experts were in earlier runs, and write down how popular they are now"},
    OptionRow{kBench | kSimulate, "--popularity", "FILE", &O::popularity,
              "begin with how popular experts were in earlier runs"},
    OptionRow{kEngine, "--ring-depth", "N", &O::ring_depth, "reads in flight", 1, 1024},
    OptionRow{kEngine, "--piece", "SIZE", &O::piece, "bytes of one read, a multiple of 4 KiB (default: 1MiB)"},
    OptionRow{kEngine, "--expert-groups", "file|off|G/K", &O::expert_groups,
              "group-limited routing: as the file says, off, or the best K of G groups"},
    OptionRow{kEngine | kSimulate, "--no-preload", "", &O::no_preload,
              "read experts when they are wanted or guessed, though slots are empty; else what fits is read before the first\n"
              "token (serve: beside its first answers), or, when not all fit, while the disk has nothing else to do"},
    OptionRow{kEngine | kSimulate, "--predictor", kPredictorChoices, &O::predictor,
              "how to guess the experts of coming layers when they do not all fit"},
    OptionRow{kEngine | kSimulate, "--lookahead", "N", &O::lookahead,
              "layers that gate predictors guess ahead; 0: one, and up to three while the disk idles", 0, 3},
    OptionRow{kEngine | kSimulate, "--prefetch", kPrefetchChoices, &O::prefetch,
              "read guessed experts before they are wanted; auto: while it makes tokens faster"},
    OptionRow{kEngine | kSimulate, "--prefetch-threshold", "P", &O::prefetch_threshold,
              "read what is at least so likely, up to 1; 0: found while running", 0, 1},
    OptionRow{kEngine | kSimulate, "--prefetch-gain", "PERCENT", &O::prefetch_gain,
              "with auto: how much faster tokens must become", -100, 1000},
    OptionRow{kEngine | kSimulate, "--prefetch-window", "N", &O::prefetch_window,
              "with auto: tokens of one measurement with or without", 1, 100000},

    OptionRow{kRun | kBench | bit(Command::simulate), "--plot-recall", "FILE.svg", &O::plot_recall,
              "draw how many experts were guessed right, by layer and distance"},

    OptionRow{kRun | kBench, "--trace", "FILE", &O::trace_file,
              "record which experts the router chose for each token; `stoker trace` reads it"},
    OptionRow{kRun | kBench, "--trace-details", "", &O::trace_details,
              "with --trace: record too where experts were, how long layers waited, and what was guessed"},
    OptionRow{kBench, "--routing", "WHAT", &O::routing,
              "replay a trace's FILE, or synthetic:PROFILE, in place of what the gate chooses"},

    OptionRow{kRun | kBench | kServe, "--profile", "FILE", &O::tune_profile,
              "settings that `stoker tune` found; auto: the model's own, if there is one; none: do without"},

    // Sampling.
    OptionRow{kRun | kServe, "-s, --seed", "N", &O::seed, "seed of the sampler; -1: a new one", -1, 9e15},
    OptionRow{kRun | kServe, "--temp", "X", &O::temperature, "temperature; 0: always the likeliest token", 0, 1000},
    OptionRow{kRun | kServe, "--top-k", "N", &O::top_k, "sample from the N likeliest; 0: all", 0, kMany},
    OptionRow{kRun | kServe, "--top-p", "X", &O::top_p, "sample from the likeliest that make up X; 1: all", 0, 1},
    OptionRow{kRun | kServe, "--min-p", "X", &O::min_p, "drop tokens below X times the likeliest; 0: none", 0, 1},
    OptionRow{kRun | kServe, "--repeat-penalty", "X", &O::repeat_penalty,
              "make the last tokens less likely; 1: off", 0.01, 100},
    OptionRow{kRun | kServe, "--presence-penalty", "X", &O::presence_penalty,
              "take X off the logits of the last tokens; 0: off", -100, 100},
    OptionRow{kRun | kServe, "--frequency-penalty", "X", &O::frequency_penalty,
              "take X off for each time that a token is among the last ones; 0: off", -100, 100},
    OptionRow{kRun | kServe, "--repeat-last-n", "N", &O::repeat_last_n, "last tokens that penalties look at; -1: all", -1,
              kMany},

    // Output.
    OptionRow{kEval, "--logits", "FILE", &O::logits_file,
              "write every position's logits: float32 [tokens][vocab]"},
    OptionRow{kEval, "--top1", "FILE", &O::top1_file,
              "write the likeliest id after every position; - is stdout"},
    OptionRow{kBench, "-o, --output", kFormatChoices, &O::format, "form of the table"},
    OptionRow{kRun | kBench, "--perf", "", &O::perf,
              "report time, bytes, GB/s and share of the memory's speed per stage, and how long cores, devices, links and disk were idle"},
    OptionRow{kRun | kBench, "--timeline", "FILE", &O::timeline_file,
              "write what cores, devices, links and disk did when: a chart for chrome://tracing or ui.perfetto.dev"},
    OptionRow{kRun | kInspect | kEval | kSimulate, "--json", "", &O::json,
              "print one JSON object on stdout instead of text"},
    OptionRow{kBench, "--json", "", &O::json, "the same as -o json"},
    OptionRow{kSynth, "--json", "", &O::json, "print one JSON object on stdout instead of text"},

    OptionRow{kDevices, "--json", "", &O::json, "print one JSON object on stdout instead of text"},

    // synth
    OptionRow{kSynth, "-o, --output", "FILE", &O::output, "file to write; shards get -0000N-of-0000M"},
    OptionRow{kSynth | kSimulate, "--shape", kShapeChoices, &O::shape, "whose dimensions the model has"},
    OptionRow{kSynth | kSimulate, "--dense-layers", "N", &O::dense_layers,
              "leading layers without experts; -1: as the shape", -1, 10000},
    OptionRow{kSynth | kSimulate, "--moe-layers", "N", &O::moe_layers, "layers with experts; -1: as the shape", -1,
              10000},
    OptionRow{kSynth | kSimulate, "--experts", "TYPE", &O::expert_type, "block format of the experts, such as Q4_K"},
    OptionRow{kSynth | kSimulate, "--down", "TYPE", &O::down_type, "block format of their down matrices"},
    OptionRow{kSynth, "--attn", "TYPE", &O::attention_type,
              "block format of attention and all other matrices"},
    OptionRow{kSynth, "--tokenizer", "FILE", &O::tokenizer_file,
              "tokenizer.json[.gz] whose vocabulary the model gets (default: bytes)"},
    OptionRow{kSynth, "--seed", "N", &O::synth_seed, "seed of the weights", 0, 9e15},
    OptionRow{kSynth, "--split-size", "SIZE", &O::split_size, "start a new shard after this many bytes"},
    OptionRow{kSynth, "--sparse", "", &O::sparse,
              "leave the experts as holes in the file, which read as zeros"},

    // simulate, plan
    OptionRow{kSimulate, "--attn", "TYPE", &O::attention_type,
              "block format of attention and all other matrices (default: Q8_0)"},
    OptionRow{kSimulate, "--packed", "", &O::packed, "experts lie as in a pack: one read each instead of three"},
    OptionRow{kSimulate, "--machine", "NAME", &O::machine, "machine to simulate: a name below, or a file that ends in .toml"},
    OptionRow{kSimulate, "--tokens", "N", &O::sim_tokens, "tokens to generate", 1, 100000},
    OptionRow{bit(Command::simulate), "--prompt", "N", &O::sim_prompt,
              "tokens of the routing that are a prompt before them, read in pieces of -b", 0, 100000},
    OptionRow{bit(Command::simulate), "-b, --batch-size", "N", &O::batch, "prompt tokens computed together; 0: as `run` would", 0,
              kMostBatch},
    OptionRow{kSimulate, "--routing", "SOURCE", &O::sim_routing,
              "which experts tokens want: a trace's FILE, synthetic:PROFILE, uniform, or zipf:S (rank r with weight r^-S)"},
    OptionRow{kSimulate, "--seed", "N", &O::synth_seed, "seed of the routing", 0, 9e15},
    OptionRow{bit(Command::simulate), "--sweep-ram", "A..B", &O::sweep_ram,
              "simulate nine budgets, such as 16G..96G, in place of --ram"},
    OptionRow{bit(Command::simulate), "--plot", "FILE.svg", &O::plot, "with --sweep-ram: draw tokens/s by RAM"},

    // pack
    OptionRow{kPack, "-o, --output", "FILE", &O::output, "file to write"},
    OptionRow{kPack, "--stripe", "DIR,DIR", &O::stripe_folders,
              "spread the experts over FILE and one more file in each folder, on drives of their own"},
    OptionRow{kPack, "--force", "", &O::force, "replace files that exist"},
    OptionRow{kPack, "--verify", "PACK", &O::verify, "write nothing: read all of a pack and compare checksums"},
    OptionRow{kPack, "--json", "", &O::json, "print one JSON object on stdout instead of text"},

    // tune
    OptionRow{kTune, "--prompts", "FILE", &O::prompts,
              "text like what you are going to ask; - is stdin (default: one that is built in)"},
    OptionRow{kTune, "--tokens", "N", &O::tune_tokens, "tokens of it that are computed in each run", 32, kMany},
    OptionRow{kTune, "--search-seconds", "N", &O::search_seconds, "about so long settings are simulated", 0, kMany},
    OptionRow{kTune, "--measure", "", &O::measure, "only measure this machine, and write a machine file"},
    OptionRow{kTune, "-o, --output", "FILE", &O::output,
              "profile to write (default: where run, bench and serve look for it); with --measure: machine file (default: where serve does)"},

    // trace
    OptionRow{kTrace, "-o, --output", "FILE", &O::output,
              "file to write: a trace, or as the end of its name says: .csv or .jsonl text, .popularity"},
    OptionRow{kTrace, "--json", "", &O::json, "info, stats: print one JSON object on stdout instead of text"},
    OptionRow{kTrace, "--slots", "N", &O::cache_slots,
              "stats: experts that a layer's cache holds; 0: a 32th of all, and at least what a token uses", 0, 65536},
    OptionRow{kTrace, "--plot", "FILE.svg", &O::plot,
              "stats: draw the hit rate by capacity of every policy, and of the best cache possible"},
    OptionRow{kTrace, "--plot-residency", "FILE.svg", &O::plot_residency,
              "stats: draw which experts were in memory, layers by experts, with --slots per layer"},
    OptionRow{kTrace, "--shape", "deepseek-v3", &O::trace_shape, "synth: whose router"},
    OptionRow{kTrace, "--profile", kProfileChoices, &O::profile, "synth: how much tokens repeat experts"},
    OptionRow{kTrace, "--tokens", "N", &O::trace_tokens, "synth: tokens of all prompts together", 1, kMany},
    OptionRow{kTrace, "--prompts", "N", &O::trace_prompts, "synth: prompts they belong to", 1, kMany},
    OptionRow{kTrace, "--seed", "N", &O::trace_seed, "synth: seed", 0, 9e15},
    OptionRow{kTrace, "--coupling", "X", &O::coupling,
              "synth: correlation of what is new at a token between neighbouring layers", 0, 1},
    OptionRow{kTrace, "--experts", "N", &O::trace_experts, "convert, ESFT: experts per layer", 1, 65536},
    OptionRow{kTrace, "--top-k", "N", &O::trace_top_k, "convert, ESFT: experts per token", 1, 65536},

    OptionRow{kEngine | kInspect | kTokenize | kSynth | kPack | kSimulate | kTune | kTrace, "-v, --verbose", "", &O::verbose,
              "print what is being done"},
};

constexpr std::array kCommands = {
    CommandRow{Command::run, "run", "-m FILE [-p TEXT | -f FILE | --chat]",
               "answer a prompt, or hold a conversation",
               "The answer goes to stdout, everything else to stderr. A prompt is one user message in the "
               "chat format of the\n"
               "file's own template; --raw, or a file without a template, continues the text as it is.\n"
               "Ctrl-C stops the answer. In --chat it goes on with the next message; Ctrl-D or a second "
               "Ctrl-C leaves.\n"
               "With --json stdout gets one JSON object per answer, the text in it."},
    CommandRow{Command::serve, "serve", "-m FILE [--host ADDRESS] [--port N] [--parallel N]",
               "answer over HTTP, as OpenAI's and llama.cpp's clients ask",
               "GET  / (a page with a chat and a view of the experts) /health /v1/models /props /slots /metrics /live\n"
               "POST /v1/chat/completions /v1/completions /completion /tokenize /detokenize /apply-template\n"
               "     /slots/ID?action=save|restore|erase\n"
               "Answers are streamed with \"stream\": true; response_format, json_schema and grammar give them a form, tools "
               "are\ncalled. Sampling options here are defaults for requests that do not say.\n"
               "Each slot has a KV cache of -c tokens, and a request continues from the start that it shares with "
               "what a slot holds\n"
               "(\"cache_prompt\": false does not). It listens at once; until the model is loaded answers are 503, and "
               "/health says how\n"
               "far it is. Ctrl-C or SIGTERM finishes what runs, a second one leaves at once."},
    CommandRow{Command::inspect, "inspect", "MODEL",
               "show a model's shape, types and sizes, and what fits in this machine",
               "Only the header is read."},
    CommandRow{Command::tokenize, "tokenize", "-m FILE [-p TEXT | -f FILE | --stdin]",
               "turn text into token ids, or back",
               "The ids are printed on one line. --decode reads ids, separated by white space, and prints "
               "their text."},
    CommandRow{
        Command::eval, "eval", "-m FILE (--tokens FILE | -f TEXT)",
        "judge a text: perplexity, logits of every position",
        "The text is fed as it is; each position's logits predict the token that follows in the text."},
    CommandRow{Command::bench, "bench", "-m FILE", "measure speed on real text",
               "ppN is the speed of N prompt tokens computed together in chunks of -b, tgN that of N tokens "
               "one after the other.\n"
               "Every next token comes from the text, not from the model: a model that talks to itself "
               "repeats experts and looks\n"
               "faster than it is. Each repetition reads another part of the text. Values are mean and "
               "standard deviation."},
    CommandRow{
        Command::synth, "synth", "-o FILE", "write a model of random weights with real dimensions",
        "The file is valid GGUF for any engine: for measuring without a download of hundreds of gigabytes."},
    CommandRow{
        Command::pack, "pack", "-m MODEL -o FILE [--stripe DIR,DIR] | --verify PACK",
        "lay a model's experts out for streaming: one read each, with a checksum",
        "FILE holds all of the model and is used like it: stoker run -m FILE. The answers are the same, bit for "
        "bit; the\n"
        "original is not needed any more. A damaged expert is found when it is read, and by --verify.\n"
        "With --stripe the drives are read side by side; stripes that move are looked for beside FILE too.\n"
        "Only stoker reads packs."},
    CommandRow{
        Command::simulate, "simulate", "[--machine NAME] [--shape NAME | -m FILE]",
        "how fast a model would decode on another machine: without its arithmetic, or even its file",
        "The scheduler that runs models decides on a virtual clock, with drive, memory, cores and links as the machine "
        "file's\n"
        "speeds. Built in: tower-2x3090-4x32GB, tower-2x3090-2x64GB-gen5, 1x3090-64GB, cpu-only-24GB. The GPUs hold the\n"
        "weights that every token reads when they fit; experts are in RAM and on disk. The first 64 tokens are told\n"
        "apart: they fill the cache. synthetic:default repeats experts as a model of this kind does on real text, "
        "pessimistic as\n"
        "one that repeats them less; the tokens of uniform and zipf:S know nothing of each other. Guesses of gates are as "
        "good as\n"
        "measured on such models. Of a model file only the header is read."},
    CommandRow{Command::devices, "devices", "[--device LIST]", "what there is to compute on, and how fast it is",
               "Links and memories are measured, for a second or two. cuda:0,0 makes two logical devices of one card.\n"
               "host:N,vram=SIZE,link=RATE,compute=RATE makes N devices of CPU memory and threads, to try placement without a "
               "card: rates\n"
               "such as 13GB/s are modelled; layout=packed keeps experts in the order in which a card has them,\n"
               "unpinned=refused lets copies of memory that is not pinned fail. delay-us=N and seed=N make copies late by "
               "chance; fail-copy=N, fail-allocation=N and lose-at=N (or D:N, for device D) make "
               "the N-th\n"
               "fail. A model's weights that every token reads are in the memory of devices as far as they fit, and not in RAM; "
               "of a device\n"
               "that is lost they are read again."},
    CommandRow{Command::plan, "plan", "[--machine NAME] [--shape NAME | -m FILE]",
               "what of a model goes where on a machine, and what speed to expect",
               "The speed is that of `stoker simulate`, whose help says more, after its first 64 tokens."},
    CommandRow{
        Command::tune, "tune", "-m MODEL [--prompts FILE] | --measure [-m MODEL] [-o MACHINE.toml]",
        "find the settings that are fastest for a model on this machine",
        "Measures the machine, records which experts the text uses and how well gates guess them, simulates every policy on\n"
        "that, predictors and layers ahead with the best two, thresholds with the best of these, lets the fastest and the\n"
        "defaults generate in turns, and writes what was fastest as the model's profile, which run, bench and serve take up from then on\n"
        "($XDG_CONFIG_HOME/stoker/MODEL'S FINGERPRINT.toml). What their command line says wins; --profile none does without.\n"
        "Give the --ram that you are going to use. Ctrl-C keeps the profile there was. Loads the model up to sixteen times.\n"
        "--measure alone: the speeds of the disk that holds MODEL (without one, that of the file's folder), of the memory,\n"
        "and of the kernels of every format, and what layers take beside their weights, as a machine file for `stoker\n"
        "simulate --machine FILE` and `stoker plan`. Without -o it goes to $XDG_CONFIG_HOME/stoker/machine.toml, where `stoker\n"
        "serve` finds it; tuning a model keeps it there too. Takes half a minute; other programs should rest meanwhile."},
    CommandRow{
        Command::trace, "trace", "info TRACE | stats TRACE | convert FILE -o FILE | synth -o TRACE",
        "look at, convert and make up traces of which experts tokens use",
        "info: what was traced. stats: how unequal experts are, how often tokens repeat them, and the hit rates of an LRU\n"
        "cache and of the best cache possible, per layer.\n"
        "convert: a trace to .csv or .jsonl; a .csv or .csv.gz with turn,phase,step,layer,slot,expert,weight to a trace; a\n"
        "folder of ESFT's files (one per layer; see --experts, --top-k) to a trace; a trace to NAME.popularity (see `run\n"
        "--popularity`).\n"
        "synth: routing made up with the statistics of real models; `stoker bench --routing` replays it."},
};

void check_text_sources(const Options& o, bool one_needed, std::vector<std::string>& problems) {
  int sources = static_cast<int>(!o.prompt.empty()) + static_cast<int>(!o.file.empty()) +
                static_cast<int>(o.from_stdin);
  if (sources > 1) problems.push_back("give the text once: -p, -f or --stdin");
  if (sources == 0 && one_needed) problems.push_back("no text: give -p TEXT or -f FILE (-f - reads stdin)");
}

void check_run(const Options& o, std::vector<std::string>& problems) {
  if (o.chat && o.file == "-")
    problems.push_back("--chat reads its messages from stdin: -f - cannot be the first one");
  if (o.chat && o.raw) problems.push_back("--chat needs the chat template that --raw leaves out");
  if (o.raw && o.thinking)
    problems.push_back("--thinking is a part of the chat template that --raw leaves out");
  if (o.raw && !o.system_prompt.empty())
    problems.push_back("-sys is a part of the chat template that --raw leaves out");
  check_text_sources(o, !o.chat, problems);
}

void check_eval(const Options& o, std::vector<std::string>& problems) {
  if (o.tokens_file.empty() == o.file.empty()) problems.push_back("give either --tokens FILE or -f TEXT");
  if (o.json && o.top1_file == "-")
    problems.push_back("--json and --top1 - both want stdout: give --top1 a file");
}

void check_block_types(const Options& o, std::vector<std::string>& problems) {
  struct Named {
    std::string_view option, value;
  };
  for (const Named& type :
       {Named{"--experts", o.expert_type}, Named{"--down", o.down_type}, Named{"--attn", o.attention_type}}) {
    if (!type.value.empty() && find_block_type(type.value) == nullptr) {
      problems.push_back(fmt::format("{} {}: no such block format; they are {}", type.option, type.value, [] {
        std::string all;
        for (const BlockTypeInfo& t : all_block_types())
          all += fmt::format("{}{}", all.empty() ? "" : " ", t.name);
        return all;
      }()));
    }
  }
}

void check_synth(const Options& o, std::vector<std::string>& problems) {
  if (o.output.empty()) problems.push_back("no file to write: give -o FILE");
  check_block_types(o, problems);
}

void check_simulated(const Options& o, std::vector<std::string>& problems) {
  check_block_types(o, problems);
  bool shaped = !o.expert_type.empty() || !o.down_type.empty() || !o.attention_type.empty() || o.dense_layers >= 0 ||
                o.moe_layers >= 0 || o.packed;
  if (!o.model.empty() && shaped)
    problems.push_back(
        "a model file has its own layers and formats: leave out --experts, --down, --attn, --dense-layers, "
        "--moe-layers and --packed");
}

void check_plot(std::string_view option, const std::string& path, std::vector<std::string>& problems) {
  if (!path.empty() && !path.ends_with(".svg"))
    problems.push_back(fmt::format("{} {}: charts are SVG files: give a name that ends in .svg", option, path));
}

void check_sweep(const Options& o, std::vector<std::string>& problems) {
  i64 from = 0, to = 0;
  if (!o.sweep_ram.empty() && !parse_ram_range(o.sweep_ram, from, to))
    problems.push_back(fmt::format("--sweep-ram {}: must be two sizes, the smaller first, such as 16G..96G", o.sweep_ram));
  if (std::vector<i64> sizes; !o.vram.empty() && !parse_byte_sizes(o.vram, sizes))
    problems.push_back(fmt::format("--vram {}: must be sizes separated by commas, such as 20G or 20G,6G", o.vram));
  if (!o.sweep_ram.empty() && o.ram.bytes > 0) problems.push_back("--sweep-ram goes through budgets: leave --ram out");
  if (o.sweep_ram.empty() && !o.plot.empty()) problems.push_back("--plot draws what --sweep-ram A..B simulates: give both");
  if (!o.sweep_ram.empty() && !o.plot_recall.empty())
    problems.push_back("--plot-recall draws one simulation, not those of --sweep-ram: leave one of them out");
  check_plot("--plot", o.plot, problems);
}

void check_pack_options(const Options& o, std::vector<std::string>& problems) {
  if (!o.verify.empty()) {
    if (!o.model.empty() || !o.output.empty() || !o.stripe_folders.empty() || o.force)
      problems.push_back("--verify PACK writes nothing: leave out -m, -o, --stripe and --force");
    return;
  }
  if (o.model.empty()) problems.push_back("no model: give -m FILE");
  if (o.output.empty()) problems.push_back("no file to write: give -o FILE");
  std::string folders = "," + o.stripe_folders + ",";
  if (!o.stripe_folders.empty() && folders.find(",,") != std::string::npos)
    problems.push_back("--stripe: a folder's name is empty");
}

void check_trace(const Options& o, std::vector<std::string>& problems) {
  const std::vector<std::string>& words = o.positional;
  std::string_view action = words.empty() ? "" : std::string_view(words[0]);
  bool synth = action == "synth", converts = action == "convert";
  if (!synth && !converts && action != "info" && action != "stats") {
    problems.push_back("trace: say what to do: info, stats, convert or synth");
    return;
  }
  if (synth && words.size() > 1) problems.push_back(fmt::format("{}: synth reads no file", words[1]));
  if (!synth && words.size() < 2) problems.push_back(fmt::format("trace {}: no file to read: give its name", action));
  if (words.size() > 2) problems.push_back(fmt::format("{}: one file at a time", words[2]));
  if ((synth || converts) && o.output.empty()) problems.push_back("no file to write: give -o FILE");
  if (!synth && !converts && !o.output.empty()) problems.push_back(fmt::format("-o {}: {} writes no file", o.output, action));
  if (action != "stats" && !(o.plot.empty() && o.plot_residency.empty()))
    problems.push_back("--plot and --plot-residency: `stoker trace stats` draws");
  check_plot("--plot", o.plot, problems);
  check_plot("--plot-residency", o.plot_residency, problems);
  if (o.trace_shape != "deepseek-v3") problems.push_back(fmt::format("--shape {}: must be deepseek-v3", o.trace_shape));
  if (o.trace_prompts > o.trace_tokens)
    problems.push_back(fmt::format("--prompts {}: more than --tokens {}", o.trace_prompts, o.trace_tokens));
}

void check_tune(const Options& o, std::vector<std::string>& problems) {
  if (!o.measure) {
    if (o.model.empty()) problems.push_back("no model: give -m FILE, or --measure");
    return;
  }
  if (!o.prompts.empty()) problems.push_back("--prompts: --measure reads no text");
  if (!o.output.empty() && !o.output.ends_with(".toml"))
    problems.push_back(fmt::format("-o {}: the name of a machine file ends in .toml", o.output));
}

}  // namespace

std::span<const OptionRow> option_rows() { return kRows; }
std::span<const CommandRow> command_rows() { return kCommands; }

const CommandRow& row(Command command) {
  for (const CommandRow& r : kCommands) {
    if (r.command == command) return r;
  }
  return kCommands[0];
}

std::vector<std::string> validate(Command command, const Options& o) {
  std::vector<std::string> problems;
  bool model_needed = command != Command::synth && command != Command::pack &&
                      command != Command::simulate && command != Command::plan && command != Command::trace && command != Command::tune &&
                      command != Command::devices;
  if (model_needed && o.model.empty()) {
    problems.push_back(command == Command::inspect ? "no model: give its file" : "no model: give -m FILE");
  }
  if (o.piece.bytes % 4096 != 0 || o.piece.bytes > 64 * kMiB)
    problems.push_back("--piece: must be a multiple of 4 KiB and at most 64 MiB");
  i64 groups = 0, used = 0;
  if (o.expert_groups != "file" && o.expert_groups != "off" &&
      !parse_expert_groups(o.expert_groups, groups, used)) {
    problems.push_back(fmt::format(
        "--expert-groups {}: must be file, off, or G/K with 1 <= K <= G, such as 8/4", o.expert_groups));
  }
  if (o.exact && !o.cache_type.empty() && o.cache_type != "f32")
    problems.push_back(fmt::format("--exact keeps the cache in f32: leave --cache-type {} out", o.cache_type));
  check_plot("--plot-recall", o.plot_recall, problems);
  if (!o.plot_recall.empty() && o.predictor == "none")
    problems.push_back("--plot-recall has nothing to draw with --predictor none");
  if (o.trace_details && o.trace_file.empty()) problems.push_back("--trace-details adds to what --trace FILE records: give both");
  if (command == Command::run) check_run(o, problems);
  if (command == Command::tokenize) check_text_sources(o, true, problems);
  if (command == Command::eval) check_eval(o, problems);
  if (command == Command::bench && o.bench_prompt == 0 && o.bench_generate == 0) {
    problems.push_back("-p 0 and -n 0 leave nothing to measure");
  }
  if (command == Command::synth) check_synth(o, problems);
  if (command == Command::simulate || command == Command::plan) check_simulated(o, problems);
  if (command == Command::simulate) check_sweep(o, problems);
  if (command == Command::pack) check_pack_options(o, problems);
  if (command == Command::trace) check_trace(o, problems);
  if (command == Command::tune) check_tune(o, problems);
  return problems;
}

}  // namespace stoker
