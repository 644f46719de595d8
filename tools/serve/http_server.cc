#include "tools/serve/http_server.h"

#include <httplib.h>

#include <map>

#include "runtime/engine.h"
#include "tools/serve/answer_form.h"
#include "tools/serve/client_watch.h"
#include "tools/serve/facts.h"
#include "tools/serve/metrics.h"

namespace stoker {

namespace {

constexpr size_t kLargestBody = size_t{32} << 20;
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

// Equal keys take as long as different ones.
bool same_text(const std::string& a, const std::string& b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size() && !b.empty(); i++)
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i % b.size()]);
  return difference == 0;
}

void check_key(const std::string& key, const Request& req) {
  if (key.empty()) return;
  std::string bearer = req.get_header_value("Authorization");
  if (!same_text(bearer, "Bearer " + key) && !same_text(req.get_header_value("X-Api-Key"), key))
    throw ApiError(401, "wrong or missing API key; send it as Authorization: Bearer KEY");
}

// A request that generates, from its first event to its answer.
class Generating {
 public:
  Generating(const Service& service, const CompletionWish& wish, std::unique_ptr<AnswerForm> form, const Request& req)
      : completion_(service.batcher(), wish),
        form_(std::move(form)),
        choices_(completion_.choices()),
        client_(req.remote_addr, req.remote_port) {}

  // Waits for an event; false when the client has left.
  bool take(CompletionEvent& event) {
    while (true) {
      if (std::optional<CompletionEvent> next = completion_.next(kPollMs)) {
        event = std::move(*next);
        size_t choice = event.choice;
        CompletionEvent copy = event;
        choices_[choice].add(std::move(copy));
        return true;
      }
      if (client_.gone()) return false;
    }
  }

  void answer_whole(Response& res) {
    CompletionEvent event;
    while (!completion_.finished()) {
      if (!take(event)) return;  // nobody reads what would be written
      throw_failure(event);
    }
    answer(res, form_->whole(choices_));
  }

  // Up to the first event an error can still be an answer with a status of its own.
  bool take_first() {
    if (!take(first_)) return false;
    throw_failure(first_);
    return true;
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
      for (const Json& json : form_->pieces(event, choices_[event.choice])) write(sink, json);
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
  void write(httplib::DataSink& sink, const Json& json) { write_text(sink, "data: " + to_text(json) + "\n\n"); }
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
              const Request& req, Response& res) {
  bool stream = body.boolean("stream", false);
  auto running = std::make_shared<Generating>(service, wish, std::move(form), req);
  if (!stream) return running->answer_whole(res);
  if (!running->take_first()) return;
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
  generate(service, body, wish, chat_form(service, body), req, res);
}

void text_completion(const Service& service, const Request& req, Response& res) {
  RequestBody body(req.body);
  CompletionWish wish = service.wish(body);
  service.add_text_prompts(body, wish);
  wish.top_logprobs = wanted_logprobs(body, "logprobs");
  generate(service, body, wish, text_form(service, body), req, res);
}

void native_completion(const Service& service, const Request& req, Response& res) {
  RequestBody body(req.body);
  CompletionWish wish = service.wish(body);
  if (i64 count = body.integer("n_probs", 0, 0, kMostLogprobs); count > 0) wish.top_logprobs = count;
  service.add_text_prompts(body, wish);
  generate(service, body, wish, native_form(service, wish), req, res);
}

void tokenize(const Service& service, const Request& req, Response& res) { answer(res, tokens_of(service, RequestBody(req.body))); }
void detokenize(const Service& service, const Request& req, Response& res) { answer(res, text_of(service, RequestBody(req.body))); }
void apply_template(const Service& service, const Request& req, Response& res) {
  answer(res, Json{{"prompt", service.chat_prompt_text(RequestBody(req.body))}});
}
void health(const Service&, const Request&, Response& res) { answer(res, Json{{"status", "ok"}}); }
void models(const Service& service, const Request&, Response& res) { answer(res, models_json(service)); }
void props(const Service& service, const Request&, Response& res) { answer(res, props_json(service)); }
void slots(const Service& service, const Request&, Response& res) { answer(res, slots_json(service)); }
void metrics(const Service& service, const Request&, Response& res) {
  res.set_content(metrics_text(service.batcher().status()), "text/plain; version=0.0.4");
}

void serve_request(const Service& service, bool open, Handler handler, const Request& req, Response& res) {
  try {
    if (!open) check_key(service.options().api_key, req);
    handler(service, req, res);
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
  if (!res.body.empty()) return;
  if (res.status == 404 && !allowed.empty()) {
    res.set_header("Allow", allowed);
    return answer(res, ApiError(405, fmt::format("{} {}: this endpoint takes {}", req.method, req.path, allowed)));
  }
  std::string message = "the request is not valid HTTP";
  if (res.status == 404) message = fmt::format("{} {}: no such endpoint", req.method, req.path);
  if (res.status == 413) message = fmt::format("the body is larger than {} bytes", kLargestBody);
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
  httplib::Server server;
  int port = 0;
  std::map<std::string, std::string> methods;  // path -> those it has, as Allow lists them

  void get(const Service& service, const char* path, bool open, Handler handler) {
    methods[path] = "GET, HEAD";
    server.Get(path, [&service, open, handler](const Request& req, Response& res) { serve_request(service, open, handler, req, res); });
  }
  void post(const Service& service, const char* path, Handler handler) {
    methods[path] = "POST";
    server.Post(path, [&service, handler](const Request& req, Response& res) { serve_request(service, false, handler, req, res); });
  }
};

HttpServer::HttpServer(const Options& o) : impl_(std::make_unique<Impl>()) {
  httplib::Server& server = impl_->server;
  server.set_socket_options(socket_options);
  server.set_payload_max_length(kLargestBody);
  server.set_write_timeout(60);
  server.set_tcp_nodelay(true);
  server.set_error_handler([this](const Request& req, Response& res) {
    auto known = impl_->methods.find(req.path);
    library_error(known == impl_->methods.end() ? "" : known->second, req, res);
  });
  int port = static_cast<int>(o.port);
  if (port == 0) {
    impl_->port = server.bind_to_any_port(o.host);
  } else if (server.bind_to_port(o.host, port)) {
    impl_->port = port;
  }
  if (impl_->port <= 0)
    fail("cannot listen on {}:{}: the port is in use, or the address is none of this machine's; see --host and --port", o.host,
         o.port);
}

HttpServer::~HttpServer() = default;

int HttpServer::port() const { return impl_->port; }

void HttpServer::run(const Service& service) {
  Impl& i = *impl_;
  i.get(service, "/health", true, health);
  i.get(service, "/v1/health", true, health);
  i.get(service, "/v1/models", false, models);
  i.get(service, "/props", false, props);
  i.get(service, "/slots", false, slots);
  i.get(service, "/metrics", false, metrics);
  i.post(service, "/v1/chat/completions", chat);
  i.post(service, "/v1/completions", text_completion);
  i.post(service, "/completion", native_completion);
  i.post(service, "/tokenize", tokenize);
  i.post(service, "/detokenize", detokenize);
  i.post(service, "/apply-template", apply_template);
  size_t threads = static_cast<size_t>(service.batcher().capacity() + kSpareThreads);
  i.server.new_task_queue = [threads] { return new httplib::ThreadPool(threads); };  // the library deletes it
  i.server.listen_after_bind();
}

void HttpServer::stop() { impl_->server.stop(); }

}  // namespace stoker
