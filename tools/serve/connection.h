// Connection: one client's socket, as the HTTP library reads and writes it, with the limits that the library lacks: a
// request line and headers of bounded size, times within which headers and a request must have arrived, shorter ones when
// others wait for the thread, no body left unread behind an answer. Only http_server.cc and connection.cc know the library.
#pragma once

#include <httplib.h>

#include <array>
#include <atomic>

#include "kernels/base/types.h"

namespace stoker {

// How many connections have a thread and how many wait for one. Any thread.
struct Crowd {
  i64 threads = 0;
  std::atomic<i64> served{0}, waiting{0};

  bool full() const { return waiting > 0 && served >= threads; }
};

class Connection : public httplib::Stream {
 public:
  static constexpr i64 kHeaderBytesMax = 64 << 10;
  static constexpr i64 kBodyBytesMax = 32 << 20;
  static constexpr i64 kReadSeconds = 20;      // without a byte of a request that has begun
  static constexpr i64 kHeaderSeconds = 10;    // for its line and headers
  static constexpr i64 kRequestSeconds = 300;  // for all of it
  static constexpr i64 kWriteSeconds = 60;     // without the client taking a byte
  static constexpr i64 kIdleSeconds = 15;      // between two requests
  // While others wait for a thread: between two requests or for headers, and for all of a request.
  static constexpr i64 kCrowdedHeaderSeconds = 2, kCrowdedRequestSeconds = 10;

  Connection(int socket, const Crowd& crowd) : socket_(socket), crowd_(crowd) {}
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
  i64 deadline_ns() const;
  void linger();

  int socket_;
  const Crowd& crowd_;
  std::array<char, 16384> buffer_;
  size_t begin_ = 0, end_ = 0;  // of what is read and not taken
  bool in_body_ = false, answered_ = false;
  i64 header_bytes_ = 0, body_bytes_ = 0, body_left_ = 0;
  i64 begun_ns_ = 0;  // the request; or the wait for one
};

// The library's server over such connections.
class ConnectionServer : public httplib::Server {
 public:
  // From now on: no request is begun, those that run go on. Any thread.
  void refuse_new() { stopping_ = true; }
  void widen_backlog();  // after binding: the library asks for 5
  // Before it runs. Connections beyond the threads wait, at most kMostWaiting of them; further ones are answered 503.
  void use_threads(i64 count);

  // The one whose request this thread is serving.
  static const Connection& current();

 private:
  bool process_and_close_socket(socket_t socket) override;

  static constexpr i64 kMostWaiting = 128;

  std::atomic<bool> stopping_{false};
  Crowd crowd_;
};

}  // namespace stoker
