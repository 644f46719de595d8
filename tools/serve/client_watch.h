// ClientWatch: whether the client of a request is still there, so that nobody computes for one who left.
#pragma once

namespace stoker {

class ClientWatch {
 public:
  explicit ClientWatch(int socket) : socket_(socket) {}

  bool gone() const;

 private:
  int socket_;
};

}  // namespace stoker
