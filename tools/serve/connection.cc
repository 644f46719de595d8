#include "tools/serve/connection.h"

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <new>

#include "kernels/base/clock.h"

namespace stoker {

namespace {

constexpr i64 kSecondNs = 1'000'000'000;
constexpr int kTickMs = 100;          // how late a stop is noticed
constexpr i64 kLingerSeconds = 5;
constexpr int kBacklog = 511;

thread_local const Connection* serving = nullptr;
thread_local bool refusing = false;  // the connection that is handed to this thread

// The library's threads, with a count of those who wait for one.
class ConnectionQueue : public httplib::ThreadPool {
 public:
  ConnectionQueue(Crowd& crowd, i64 most_waiting)
      : ThreadPool(static_cast<size_t>(crowd.threads)), crowd_(crowd), most_waiting_(most_waiting) {}

  void enqueue(std::function<void()> serve) override {
    if (crowd_.waiting >= most_waiting_) return turn_away(serve);
    crowd_.waiting++;
    try {
      ThreadPool::enqueue([this, serve] { take(serve); });
    } catch (const std::bad_alloc&) {
      crowd_.waiting--;
      turn_away(serve);
    }
  }

 private:
  void take(const std::function<void()>& serve) {
    crowd_.served++;
    crowd_.waiting--;
    try {
      serve();
    } catch (const std::bad_alloc&) {
      // Not even an error could be written: its connection is closed, and those who have memory go on.
    }
    crowd_.served--;
  }
  static void turn_away(const std::function<void()>& serve) {
    refusing = true;
    serve();
    refusing = false;
  }

  Crowd& crowd_;
  i64 most_waiting_;
};

// Without waiting for the client, who may not read it.
void refuse(int socket) {
  constexpr std::string_view kBusy = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
  (void)::send(socket, kBusy.data(), kBusy.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  ::shutdown(socket, SHUT_RDWR);
  ::close(socket);
}

bool wait_for(int socket, short events, i64 ms) {
  pollfd watched{.fd = socket, .events = events, .revents = 0};
  int ready = 0;
  do ready = ::poll(&watched, 1, static_cast<int>(std::max<i64>(ms, 0)));
  while (ready < 0 && errno == EINTR);
  return ready > 0;
}

void describe(const sockaddr_storage& address, std::string& ip, int& port) {
  char text[INET6_ADDRSTRLEN] = {};
  if (address.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(address);
    port = ntohs(in.sin_port);
    if (::inet_ntop(AF_INET, &in.sin_addr, text, sizeof text) != nullptr) ip = text;
  } else if (address.ss_family == AF_INET6) {
    const auto& in = reinterpret_cast<const sockaddr_in6&>(address);
    port = ntohs(in.sin6_port);
    if (::inet_ntop(AF_INET6, &in.sin6_addr, text, sizeof text) != nullptr) ip = text;
  }
}

// -1: it does not say, or says nonsense.
i64 body_bytes(const httplib::Request& request) {
  if (request.has_header("Transfer-Encoding")) return -1;
  std::string text = request.get_header_value("Content-Length");
  if (text.empty()) return 0;
  i64 bytes = -1;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), bytes);
  return error == std::errc() && end == text.data() + text.size() ? bytes : -1;
}

}  // namespace

Connection::~Connection() {
  if (answered_ && !at_border()) linger();
  ::shutdown(socket_, SHUT_RDWR);
  ::close(socket_);
}

// A socket that is closed with bytes unread resets the connection, and the client may never see the answer.
void Connection::linger() {
  ::shutdown(socket_, SHUT_WR);
  i64 until = steady_clock().now_ns() + kLingerSeconds * kSecondNs;
  while (steady_clock().now_ns() < until && !crowd_.full())
    if (wait_for(socket_, POLLIN, kTickMs) && ::recv(socket_, buffer_.data(), buffer_.size(), 0) <= 0) return;
}

bool Connection::wait_for_request(const std::atomic<bool>& stopping) {
  begun_ns_ = steady_clock().now_ns();
  while (begin_ == end_) {
    i64 waited_ns = steady_clock().now_ns() - begun_ns_;
    if (stopping || waited_ns >= (crowd_.full() ? kCrowdedHeaderSeconds : kIdleSeconds) * kSecondNs) return false;
    if (wait_for(socket_, POLLIN, kTickMs) && fill() <= 0) return false;
  }
  in_body_ = false;
  header_bytes_ = 0;
  begun_ns_ = steady_clock().now_ns();
  return !stopping;
}

// When the part of the request that is being read must be there.
i64 Connection::deadline_ns() const {
  i64 seconds = in_body_ ? kRequestSeconds : kHeaderSeconds;
  if (crowd_.full()) seconds = in_body_ ? kCrowdedRequestSeconds : kCrowdedHeaderSeconds;
  return begun_ns_ + seconds * kSecondNs;
}

void Connection::begin_body(i64 bytes) {
  in_body_ = true;
  body_bytes_ = 0;
  body_left_ = bytes;
}

bool Connection::is_readable() const {
  i64 silent_from_ns = steady_clock().now_ns();
  while (begin_ == end_) {
    i64 now = steady_clock().now_ns();
    if (now >= std::min(deadline_ns(), silent_from_ns + kReadSeconds * kSecondNs)) return false;
    if (wait_for(socket_, POLLIN, kTickMs)) return true;
  }
  return true;
}

bool Connection::is_writable() const { return wait_for(socket_, POLLOUT, kWriteSeconds * 1000); }

ssize_t Connection::fill() {
  ssize_t n = 0;
  do n = ::recv(socket_, buffer_.data(), buffer_.size(), 0);
  while (n < 0 && errno == EINTR);
  begin_ = 0;
  end_ = n > 0 ? static_cast<size_t>(n) : 0;
  return n;
}

ssize_t Connection::read(char* to, size_t size) {
  if (in_body_ ? body_too_large() : header_bytes_ >= kHeaderBytesMax) return -1;
  if (steady_clock().now_ns() >= deadline_ns() || !is_readable()) return -1;
  if (begin_ == end_) {
    ssize_t n = fill();
    if (n <= 0) return n;
  }
  size_t taken = std::min(size, end_ - begin_);
  std::memcpy(to, buffer_.data() + begin_, taken);
  begin_ += taken;
  (in_body_ ? body_bytes_ : header_bytes_) += static_cast<i64>(taken);
  if (in_body_ && body_left_ > 0) body_left_ -= static_cast<i64>(taken);
  return static_cast<ssize_t>(taken);
}

ssize_t Connection::write(const char* from, size_t size) {
  answered_ = true;
  while (true) {  // asking whether it may be written to would be one more call into the kernel for each token
    ssize_t n = ::send(socket_, from, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) return n;
    if (errno == EINTR) continue;
    if (errno != EAGAIN || !is_writable()) return -1;
  }
}

void Connection::get_remote_ip_and_port(std::string& ip, int& port) const {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (::getpeername(socket_, reinterpret_cast<sockaddr*>(&address), &size) == 0) describe(address, ip, port);
}

void Connection::get_local_ip_and_port(std::string& ip, int& port) const {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size) == 0) describe(address, ip, port);
}

const Connection& ConnectionServer::current() { return *serving; }

void ConnectionServer::widen_backlog() { ::listen(svr_sock_, kBacklog); }

void ConnectionServer::use_threads(i64 count) {
  crowd_.threads = count;
  new_task_queue = [this] { return new ConnectionQueue(crowd_, kMostWaiting); };  // the library deletes it
}

bool ConnectionServer::process_and_close_socket(socket_t socket) {
  if (refusing) {
    refuse(socket);
    return false;
  }
  Connection connection(socket, crowd_);
  serving = &connection;
  auto prepare = [&](httplib::Request& request) {
    // The endpoints read JSON whatever it is called: curl's -d calls it a form, of which the library takes 8 KiB. Nor
    // does it bound what a packed body becomes.
    for (const char* header : {"Content-Type", "Content-Encoding"}) request.headers.erase(header);
    request.ranges.clear();
    bool has_body = request.method == "POST" || request.method == "PUT" || request.method == "PATCH";
    // Without either of these there is no body (RFC 9112, 6.3); the library would read until the client closes.
    if (has_body && !request.has_header("Content-Length") && !request.has_header("Transfer-Encoding"))
      request.headers.emplace("Content-Length", "0");
    connection.begin_body(has_body || request.has_header("Content-Length") ? body_bytes(request) : 0);
  };
  while (connection.wait_for_request(stopping_)) {
    bool last = false;
    if (!process_request(connection, stopping_, last, prepare) || last || !connection.at_border()) break;
  }
  serving = nullptr;
  return true;
}

}  // namespace stoker
