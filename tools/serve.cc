// stoker serve: answers over HTTP, as OpenAI's and llama.cpp's clients ask.
#include <signal.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "runtime/engine.h"
#include "tools/commands.h"
#include "tools/engine_setup.h"
#include "tools/interrupt.h"
#include "tools/serve/http_server.h"
#include "tools/terminal.h"

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

void serve_until_interrupted(HttpServer& http, const Service& service) {
  std::atomic<bool> ended{false};
  std::thread serving = [&] {
    NoSignals quiet;
    return std::thread([&] {
      http.run(service);
      ended = true;
    });
  }();
  while (!interrupt_flag() && !ended) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  if (!ended) note("stoker: finishing what runs; Ctrl-C again leaves at once");
  http.stop();
  serving.join();
  if (!interrupt_flag()) fail("the server stopped: the system refused to accept connections");
}

}  // namespace

int serve_command(const Options& o) {
  HttpServer http(o);
  EngineOptions engine = engine_options(o);
  engine.sequences = o.parallel;
  engine.chunk = o.serve_batch;
  Batcher batcher([&] { return load_engine(engine); }, o.queue);
  Service service(batcher, o);
  note("stoker: {} on http://{}:{}, {} slots of {} tokens", service.model(), o.host, http.port(), o.parallel, o.context);
  serve_until_interrupted(http, service);
  return 0;
}

}  // namespace stoker
