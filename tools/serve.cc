// stoker serve: answers over HTTP, as OpenAI's and llama.cpp's clients ask.
#include <signal.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "kernels/base/clock.h"
#include "runtime/engine.h"
#include "tools/commands.h"
#include "tools/engine_setup.h"
#include "tools/interrupt.h"
#include "tools/machines.h"
#include "tools/serve/http_server.h"
#include "tools/terminal.h"
#include "tools/tune/kept_machine.h"

namespace stoker {

namespace {

// Threads that are made while this lives never see Ctrl-C: it would break off their system calls.
class NoSignals {
 public:
  NoSignals() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    ::pthread_sigmask(SIG_BLOCK, &set, &before_);
  }
  ~NoSignals() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

// The HTTP server on a thread of its own, while this lives.
class Serving {
 public:
  explicit Serving(HttpServer& http) : http_(http) {
    NoSignals quiet;
    thread_ = std::thread([this] {
      accepted_ = http_.run();
      ended_ = true;
    });
  }
  ~Serving() {
    if (!thread_.joinable()) return;
    http_.stop();
    thread_.join();
  }

  void until_interrupted() const {
    while (!interrupt_flag() && !ended_) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }

  // Lets what runs go on for a while, then cancels it. False: the server had ended by itself.
  bool drain(Batcher& batcher, i64 seconds) {
    if (!ended_) note("stoker: finishing what runs, for at most {} s; Ctrl-C again leaves at once", seconds);
    http_.stop();
    i64 until = steady_clock().now_ns() + seconds * 1'000'000'000;
    while (!ended_ && steady_clock().now_ns() < until) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    if (!ended_) note("stoker: warning: cancelling what still runs (--drain-timeout)");
    batcher.stop();
    thread_.join();
    return accepted_;
  }

 private:
  HttpServer& http_;
  std::atomic<bool> ended_{false};
  bool accepted_ = false;
  std::thread thread_;
};

// Tokens of a prompt at a time. Few, because others wait for each layer of them; more where each time the experts that do not
// fit are read from disk again, which takes about as long for few.
constexpr i64 kChunk = 512, kChunkInMemory = 128;

EngineOptions serving_options(const Options& o) {
  EngineOptions engine = engine_options(o);
  engine.save_popularity = true;
  engine.warm = true;
  engine.sequences = o.parallel;
  engine.chunk = o.serve_batch > 0 ? o.serve_batch : kChunk;
  engine.chunk_in_memory = o.serve_batch > 0 ? 0 : kChunkInMemory;
  return engine;
}

std::optional<SimMachine> measured_machine(const Options& o) {
  if (o.limits_of == "none") return {};
  return o.limits_of == "auto" ? kept_machine() : find_machine(o.limits_of);
}

}  // namespace

int serve_command(const Options& o) {
  if (o.log_format == "json") note_as_json();
  std::optional<SimMachine> limits = measured_machine(o);
  HttpServer http(o);
  Serving serving(http);
  note("stoker: listening on {}, port {}; loading {}", o.host, http.port(), o.model);
  auto progress = [&](std::string_view stage, i64 done, i64 total) { http.loading().note(stage, done, total); };
  Batcher batcher([&] { return load_engine(serving_options(o), progress); }, o.queue);
  Service service(batcher, o, std::move(limits));
  http.open(service);
  note("stoker: {} on http://{}:{}, {} slots of {} tokens", service.model(), o.host, http.port(), o.parallel, o.context);
  serving.until_interrupted();
  if (!serving.drain(batcher, o.drain_seconds)) fail("the server stopped: the system refused to accept connections");
  return 0;
}

}  // namespace stoker
