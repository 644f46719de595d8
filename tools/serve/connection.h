// Connection: one client's socket, as the HTTP library reads and writes it, with the limits that the library lacks: a
// request line and headers of bounded size, a time within which a request must have arrived, no body left unread
// behind an answer. Only http_server.cc and connection.cc know the library.
#pragma once

#include <httplib.h>

#include <array>
#include <atomic>

#include "kernels/base/types.h"

namespace stoker {

class Connection : public httplib::Stream {
 public:
  static constexpr i64 kHeaderBytesMax = 64 << 10;
  static constexpr i64 kBodyBytesMax = 32 << 20;
  static constexpr i64 kReadSeconds = 20;      // without a byte of a request that has begun
  static constexpr i64 kRequestSeconds = 300;  // for all of it
  static constexpr i64 kWriteSeconds = 60;     // without the client taking a byte
  static constexpr i64 kIdleSeconds = 15;      // between two requests

  explicit Connection(int socket) : socket_(socket) {}
  ~Connection() override;  // closes it, after the client has had a chance to read the last answer

  // Waits for the first byte of a request; false when none comes in time, the client has left, or `stopping`.
  bool wait_for_request(const std::atomic<bool>& stopping);
  void begin_body(i64 bytes);  // -1: chunked, length unknown
  // A chunked body has passed the limit, which the library keeps only for those that tell their length.
  bool body_too_large() const { return body_bytes_ > kBodyBytesMax; }
  // Whether the next byte on the wire is the first of a request: what the library left of a body is not.
  bool at_border() const { return in_body_ && body_left_ == 0; }

  bool is_readable() const override;
  bool is_writable() const override;
  ssize_t read(char* to, size_t size) override;
  ssize_t write(const char* from, size_t size) override;
  void get_remote_ip_and_port(std::string& ip, int& port) const override;
  void get_local_ip_and_port(std::string& ip, int& port) const override;
  socket_t socket() const override { return socket_; }

 private:
  ssize_t fill();
  void linger();

  int socket_;
  std::array<char, 16384> buffer_;
  size_t begin_ = 0, end_ = 0;  // of what is read and not taken
  bool in_body_ = false;
  i64 header_bytes_ = 0, body_bytes_ = 0, body_left_ = 0;
  i64 deadline_ns_ = 0;
};

// The library's server over such connections.
class ConnectionServer : public httplib::Server {
 public:
  // From now on: no request is begun, those that run go on. Any thread.
  void refuse_new() { stopping_ = true; }
  void widen_backlog();  // after binding: the library asks for 5

  // The one whose request this thread is serving.
  static const Connection& current();

 private:
  bool process_and_close_socket(socket_t socket) override;

  std::atomic<bool> stopping_{false};
};

}  // namespace stoker
