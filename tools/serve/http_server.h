// HttpServer: the endpoints of `stoker serve`. The only file that knows the HTTP library is http_server.cc.
#pragma once

#include <memory>

#include "tools/serve/loading.h"
#include "tools/serve/service.h"

namespace stoker {

class HttpServer {
 public:
  // Binds --host and --port at once, so that a port in use is told before a model is loaded. Throws Error.
  explicit HttpServer(const Options& options);
  ~HttpServer();

  int port() const;  // the one chosen when --port is 0

  // Answers until stop(), at first with 503 and the progress of loading, from open() on with what `service` has, which
  // must outlive the call. False: the system refused to accept connections.
  bool run();
  void open(const Service& service);  // any thread, once
  Loading& loading();
  // Any thread: no connection and no request is taken any more, those that run go on, and run() returns after the last.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace stoker
