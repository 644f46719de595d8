// HttpServer: the endpoints of `stoker serve`. The only file that knows the HTTP library is http_server.cc.
#pragma once

#include <memory>

#include "tools/serve/service.h"

namespace stoker {

class HttpServer {
 public:
  // Binds --host and --port at once, so that a port in use is told before a model is loaded. Throws Error.
  explicit HttpServer(const Options& options);
  ~HttpServer();

  int port() const;  // the one chosen when --port is 0

  // Serves until stop(); requests that run then are answered to their end. `service` must outlive the call.
  void run(const Service& service);
  void stop();  // any thread

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace stoker
