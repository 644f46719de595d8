// ClientWatch: whether the client of a request is still there, so that nobody computes for one who left.
#pragma once

#include <string>

namespace stoker {

class ClientWatch {
 public:
  // The server library does not say which socket a request came from: it is found by its peer.
  ClientWatch(const std::string& address, int port);

  bool gone() const;

 private:
  int socket_ = -1;  // -1: not found; such a client is taken to be there
};

}  // namespace stoker
