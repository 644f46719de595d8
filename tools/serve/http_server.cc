#include "tools/serve/http_server.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>

#include "kernels/base/clock.h"
#include "runtime/engine.h"
#include "tools/serve/access.h"
#include "tools/serve/answer_form.h"
#include "tools/serve/client_watch.h"
#include "tools/serve/connection.h"
#include "tools/serve/facts.h"
#include "tools/serve/live.h"
#include "tools/serve/metrics.h"
#include "tools/serve/request_log.h"
#include "tools/serve/slot_actions.h"
#include "tools/serve/web_files.h"

namespace stoker {

namespace {

constexpr i64 kSpareThreads = 32;  // beside a thread per request: for idle connections and questions
constexpr int kPollMs = 100;
constexpr i64 kMostLogprobs = 20;
constexpr const char* kRetrySeconds = "2";

using Request = httplib::Request;
using Response = httplib::Response;
using Handler = void (*)(const Service&, const Request&, Response&);

void answer(Response& res, const Json& json) { res.set_content(to_text(json), "application/json; charset=utf-8"); }

void answer(Response& res, const ApiError& error) {
  res.status = error.status();
  if (error.status() == 429 || error.status() == 503) res.set_header("Retry-After", kRetrySeconds);
  answer(res, error.json());
}

void check_key(const Access& access, const Request& req) {
  if (!access.has_key(req.get_header_value("Authorization"), req.get_header_value("X-Api-Key")))
    throw ApiError(401, "wrong or missing API key; send it as Authorization: Bearer KEY");
}

// What a browser wants to hear before it lets a page of another origin ask. True: it was the question whether it may.
bool tell_browser(const Access& access, const Request& req, Response& res) {
  std::string origin = access.allowed_origin(req.get_header_value("Origin"));
  if (origin.empty()) return false;
  res.set_header("Access-Control-Allow-Origin", origin);
  res.set_header("Access-Control-Expose-Headers", "X-Request-Id");
  res.set_header("Vary", "Origin");
  if (req.method != "OPTIONS") return false;
  res.set_header("Access-Control-Allow-Methods", "GET, POST");
  std::string asked = req.get_header_value("Access-Control-Request-Headers");
  res.set_header("Access-Control-Allow-Headers", asked.empty() ? "Authorization, Content-Type" : asked);
  res.set_header("Access-Control-Max-Age", "3600");
  res.status = 204;
  return true;
}

// A request that generates, from its first event to its answer.
class Generating {
 public:
  Generating(const Service& service, const CompletionWish& wish, std::unique_ptr<AnswerForm> form)
      : completion_(service.batcher(), wish),
        form_(std::move(form)),
        choices_(completion_.choices()),
        client_(ConnectionServer::current().socket()) {}

  // Waits for an event; false when the client has left, which is asked at each of them: the next token is not for it.
  bool take(CompletionEvent& event) {
    while (!client_.gone()) {
      std::optional<CompletionEvent> next = completion_.next(kPollMs);
      if (!next) continue;
      event = std::move(*next);
      choices_[event.choice].add(event);
      return true;
    }
    return false;
  }

  void answer_whole(Response& res) {
    CompletionEvent event;
    while (!completion_.finished()) {
      if (!take(event)) throw client_left();
      throw_failure(event);
    }
    answer(res, form_->whole(choices_));
  }

  // Up to the first event an error can still be an answer with a status of its own.
  void take_first() {
    if (!take(first_)) throw client_left();
    throw_failure(first_);
  }

  // All of it in one call: the library ends streams between calls when it stops, and running ones shall be finished.
  bool write_stream(httplib::DataSink& sink) {
    for (const Json& json : form_->opening(choices_.size())) write(sink, json);
    CompletionEvent event = std::move(first_);
    while (true) {
      if (is_failure(event)) {
        write(sink, failure(event).json());
        break;
      }
      for (const std::string& json : form_->pieces(event, choices_[event.choice])) write(sink, json);
      if (!open_) return false;  // the completion is cancelled when this goes
      if (completion_.finished()) break;
      if (!take(event)) return false;
    }
    if (completion_.finished()) {
      for (const Json& json : form_->closing(choices_)) write(sink, json);
    }
    if (form_->ends_with_done()) write_text(sink, "data: [DONE]\n\n");
    sink.done();
    return open_;
  }

 private:
  // For the log and the metrics: nobody reads the answer. The status is nginx's.
  static ApiError client_left() { return ApiError(499, "the client closed the connection"); }
  static bool is_failure(const CompletionEvent& event) {
    return event.result && (event.result->end == GenerationEnd::failed || event.result->end == GenerationEnd::cancelled);
  }
  static ApiError failure(const CompletionEvent& event) {
    if (event.result->end == GenerationEnd::cancelled) return ApiError(503, "the server is shutting down");
    return ApiError(500, event.result->status.message());
  }
  static void throw_failure(const CompletionEvent& event) {
    if (is_failure(event)) throw failure(event);
  }
  void write(httplib::DataSink& sink, const Json& json) { write(sink, to_text(json)); }
  void write(httplib::DataSink& sink, const std::string& json) { write_text(sink, "data: " + json + "\n\n"); }
  void write_text(httplib::DataSink& sink, const std::string& text) {
    open_ = open_ && sink.write(text.data(), text.size());
  }

  Completion completion_;
  std::unique_ptr<AnswerForm> form_;
  std::vector<ChoiceText> choices_;
  ClientWatch client_;
  CompletionEvent first_;
  bool open_ = true;
};

void generate(const Service& service, const RequestBody& body, const CompletionWish& wish, std::unique_ptr<AnswerForm> form,
              Response& res) {
  bool stream = body.boolean("stream", false);
  auto running = std::make_shared<Generating>(service, wish, std::move(form));
  if (!stream) return running->answer_whole(res);
  running->take_first();
  res.set_header("Cache-Control", "no-cache");
  res.set_chunked_content_provider("text/event-stream", [running](size_t, httplib::DataSink& sink) {
    return running->write_stream(sink);
  });
}

i64 wanted_logprobs(const RequestBody& body, const std::string& field) { return body.integer(field, -1, 0, kMostLogprobs); }

void chat(const Service& service, const Request& req, Response& res) {
  RequestBody body(req.body);
  CompletionWish wish = service.wish(body);
  service.add_chat_prompt(body, wish);
  if (body.boolean("logprobs", false)) wish.top_logprobs = std::max<i64>(0, wanted_logprobs(body, "top_logprobs"));
  generate(service, body, wish, chat_form(service, body), res);
}

void text_completion(const Service& service, const Request& req, Response& res) {
  RequestBody body(req.body);
  CompletionWish wish = service.wish(body);
  service.add_text_prompts(body, wish);
  wish.top_logprobs = wanted_logprobs(body, "logprobs");
  generate(service, body, wish, text_form(service, body), res);
}

void native_completion(const Service& service, const Request& req, Response& res) {
  RequestBody body(req.body);
  CompletionWish wish = service.wish(body);
  if (i64 count = body.integer("n_probs", 0, 0, kMostLogprobs); count > 0) wish.top_logprobs = count;
  service.add_text_prompts(body, wish);
  generate(service, body, wish, native_form(service, wish), res);
}

void tokenize(const Service& service, const Request& req, Response& res) { answer(res, tokens_of(service, RequestBody(req.body))); }
void detokenize(const Service& service, const Request& req, Response& res) { answer(res, text_of(service, RequestBody(req.body))); }
void apply_template(const Service& service, const Request& req, Response& res) {
  answer(res, Json{{"prompt", service.chat_prompt_text(RequestBody(req.body))}});
}
void models(const Service& service, const Request&, Response& res) { answer(res, models_json(service)); }
void one_model(const Service& service, const Request& req, Response& res) {
  if (req.matches[1] != service.model())
    throw ApiError(404, fmt::format("there is no model {}, only {}", std::string(req.matches[1]), service.model()), "model");
  answer(res, models_json(service)["data"][0]);
}
void props(const Service& service, const Request&, Response& res) { answer(res, props_json(service)); }
void slots(const Service& service, const Request& req, Response& res) {
  Json all = slots_json(service);
  auto busy = [](const Json& slot) { return slot["is_processing"].get<bool>(); };
  if (req.has_param("fail_on_no_slot") && std::all_of(all.begin(), all.end(), busy)) throw ApiError(503, "no slot is free");
  answer(res, all);
}
void act_on_slot(const Service& service, const Request& req, Response& res) {
  answer(res, slot_action(service, req.matches[1], req.get_param_value("action"), req.body));
}
// What llama-server and OpenAI have beside these, and this does not: a client that asks should not look for a wrong URL.
void not_here(const Service&, const Request& req, Response&) {
  throw ApiError(501, fmt::format("{} is not supported by this server, which generates text: ask /v1/chat/completions, "
                                  "/v1/completions or /completion", req.path));
}
constexpr std::array kNotHere = {"/v1/embeddings", "/embeddings",   "/embedding",   "/v1/rerank",
                                 "/rerank",        "/v1/reranking", "/reranking",   "/v1/messages",
                                 "/infill",        "/v1/responses", "/v1/messages/count_tokens"};
void live(const Service& service, const Request&, Response& res) { answer(res, live_json(service)); }

// The page runs only what it brings itself, whatever a model says.
void show_file(const WebFile& file, Response& res) {
  res.set_header("Cache-Control", "no-cache");
  res.set_header("X-Content-Type-Options", "nosniff");
  res.set_header("Referrer-Policy", "no-referrer");
  res.set_header("Content-Security-Policy",
                 "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
                 "base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
  std::string_view text = file.text();
  res.set_content(text.data(), text.size(), file.type);
}

// `work` answers, or throws what the answer is.
template <class Work>
void answer_errors(Response& res, const Work& work) {
  try {
    work();
  } catch (const ApiError& e) {
    answer(res, e);
  } catch (const Error& e) {
    answer(res, ApiError(400, e.what()));  // the tokenizer or the chat template cannot take it
  } catch (const std::exception& e) {
    answer(res, ApiError(500, e.what()));
  }
}

// What the library answered by itself: no such path, a body that is too large, a broken request. `allowed`: methods that
// the path does have.
void library_error(const std::string& allowed, const Request& req, Response& res) {
  if (!res.body.empty() || res.status < 400) return;
  if (ConnectionServer::current().body_too_large()) res.status = 413;
  if (res.status == 404 && !allowed.empty()) {
    res.set_header("Allow", allowed);
    return answer(res, ApiError(405, fmt::format("{} {}: this endpoint takes {}", req.method, req.path, allowed)));
  }
  std::string message = "the request is not valid HTTP";
  if (res.status == 404) message = fmt::format("{} {}: no such endpoint", req.method, req.path);
  if (res.status == 413) message = fmt::format("the body is larger than {} bytes", Connection::kBodyBytesMax);
  if (res.status >= 500) message = "the server failed";
  answer(res, ApiError(res.status, message));
}

// The library's own also sets SO_REUSEPORT, with which a second server on the same port would start without a word.
void socket_options(socket_t socket) {
  int yes = 1;
  ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
}

}  // namespace

struct HttpServer::Impl {
  explicit Impl(const Options& o) : options(o), access(o), log(o.log_format == "json") {}

  const Options& options;
  Access access;
  ConnectionServer server;
  RequestLog log;
  Loading loading;
  std::atomic<const Service*> service{nullptr};
  std::atomic<bool> stopping{false}, ended{false};
  int port = 0;
  std::map<std::string, std::string> methods;  // path, or what it begins with -> those it has, as Allow lists them

  const Service& ready() const {
    const Service* there = service.load(std::memory_order_acquire);
    if (there == nullptr) throw ApiError(503, "Loading model");
    if (stopping) throw ApiError(503, "the server is shutting down");
    return *there;
  }
  httplib::Server::Handler with_key(Handler handler) {
    return [this, handler](const Request& req, Response& res) {
      answer_errors(res, [&] {
        check_key(access, req);
        handler(ready(), req, res);
      });
    };
  }
  void get(const char* path, httplib::Server::Handler handler) {
    methods[path] = "GET, HEAD";
    server.Get(path, std::move(handler));
  }
  void get(const char* path, Handler handler) { get(path, with_key(handler)); }
  void post(const char* path, Handler handler) {
    methods[path] = "POST";
    server.Post(path, with_key(handler));
  }

  void health(Response& res) const {
    if (service == nullptr) {
      res.status = 503;
      return answer(res, loading.json());
    }
    answer_errors(res, [&] {
      Scheduler::Warmth warmth = ready().batcher().status().warmth;
      Json json = {{"status", "ok"}};
      if (warmth.done < warmth.total) json["progress"] = {{"stage", "experts"}, {"done", warmth.done}, {"total", warmth.total},
                                                                {"share", static_cast<f64>(warmth.done) / static_cast<f64>(warmth.total)}};
      answer(res, json);
    });
  }
  void add_endpoints();
  void set_limits();
  void log_requests();
};

void HttpServer::Impl::add_endpoints() {
  for (const char* path : {"/health", "/v1/health"}) get(path, [this](const Request&, Response& res) { health(res); });
  for (const WebFile& file : web_files()) get(file.path, [&file](const Request&, Response& res) { show_file(file, res); });
  for (const char* path : {"/v1/models", "/models"}) get(path, models);
  methods["/v1/models/"] = "GET, HEAD";
  server.Get(R"(/v1/models/(.+))", with_key(one_model));
  get("/props", props);
  get("/slots", slots);
  get("/live", live);
  get("/metrics", [this](const Request& req, Response& res) {
    answer_errors(res, [&] {
      check_key(access, req);
      res.set_content(metrics_text(ready(), log.by_status()), "text/plain; version=0.0.4");
    });
  });
  for (const char* path : {"/v1/chat/completions", "/chat/completions"}) post(path, chat);
  post("/v1/completions", text_completion);
  for (const char* path : {"/completion", "/completions"}) post(path, native_completion);
  for (const char* path : kNotHere) post(path, not_here);
  post("/tokenize", tokenize);
  post("/detokenize", detokenize);
  post("/apply-template", apply_template);
  methods["/slots/"] = "POST";
  server.Post(R"(/slots/(\d{1,9}))", with_key(act_on_slot));
}

void HttpServer::Impl::set_limits() {
  server.set_socket_options(socket_options);
  server.set_payload_max_length(static_cast<size_t>(Connection::kBodyBytesMax));
  server.set_tcp_nodelay(true);
  server.set_keep_alive_timeout(Connection::kIdleSeconds);  // what answers tell clients
  server.set_keep_alive_max_count(1000);
  server.use_threads(options.parallel + options.queue + kSpareThreads);
}

// A request begins and ends on one thread.
void HttpServer::Impl::log_requests() {
  struct Begun {
    std::string id;
    i64 ns = 0;
  };
  static thread_local std::optional<Begun> begun;
  server.set_pre_routing_handler([this](const Request& req, Response& res) {
    begun = {RequestLog::id_for(req.get_header_value("X-Request-Id")), steady_clock().now_ns()};
    res.set_header("X-Request-Id", begun->id);
    bool answered = tell_browser(access, req, res);
    return answered ? httplib::Server::HandlerResponse::Handled : httplib::Server::HandlerResponse::Unhandled;
  });
  server.set_error_handler([this](const Request& req, Response& res) {
    auto known = methods.find(req.path);
    for (const char* begin : {"/slots/", "/v1/models/"})
      if (known == methods.end() && req.path.rfind(begin, 0) == 0) known = methods.find(begin);
    library_error(known == methods.end() ? "" : known->second, req, res);
  });
  server.set_logger([this](const Request& req, const Response& res) {
    Begun b = begun.value_or(Begun{.id = "-", .ns = steady_clock().now_ns()});
    begun.reset();
    f64 seconds = static_cast<f64>(steady_clock().now_ns() - b.ns) / 1e9;
    log.write({b.id, req.remote_addr, req.method, req.path, res.status, seconds});
  });
}

HttpServer::HttpServer(const Options& o) : impl_(std::make_unique<Impl>(o)) {
  impl_->set_limits();
  impl_->log_requests();
  impl_->add_endpoints();
  ConnectionServer& server = impl_->server;
  int port = static_cast<int>(o.port);
  if (port == 0) {
    impl_->port = server.bind_to_any_port(o.host);
  } else if (server.bind_to_port(o.host, port)) {
    impl_->port = port;
  }
  if (impl_->port <= 0)
    fail("cannot listen on {}:{}: the port is in use, or the address is none of this machine's; see --host and --port", o.host,
         o.port);
  server.widen_backlog();
}

HttpServer::~HttpServer() = default;

int HttpServer::port() const { return impl_->port; }
Loading& HttpServer::loading() { return impl_->loading; }
void HttpServer::open(const Service& service) { impl_->service.store(&service, std::memory_order_release); }

bool HttpServer::run() {
  bool accepted = impl_->server.listen_after_bind();
  impl_->ended = true;
  return accepted || impl_->stopping;
}

void HttpServer::stop() {
  impl_->stopping = true;
  impl_->server.refuse_new();
  // The library cannot be stopped before it runs.
  while (!impl_->server.is_running() && !impl_->ended) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  impl_->server.stop();
}

}  // namespace stoker
