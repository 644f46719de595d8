#include "tools/serve/client_watch.h"

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>

#include <charconv>
#include <filesystem>

namespace stoker {

namespace {

bool is_peer(int descriptor, const std::string& address, int port) {
  sockaddr_storage peer{};
  socklen_t size = sizeof peer;
  if (::getpeername(descriptor, reinterpret_cast<sockaddr*>(&peer), &size) != 0) return false;
  char text[INET6_ADDRSTRLEN] = {};
  if (peer.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(peer);
    return ntohs(in.sin_port) == port && ::inet_ntop(AF_INET, &in.sin_addr, text, sizeof text) && address == text;
  }
  if (peer.ss_family != AF_INET6) return false;
  const auto& in = reinterpret_cast<const sockaddr_in6&>(peer);
  return ntohs(in.sin6_port) == port && ::inet_ntop(AF_INET6, &in.sin6_addr, text, sizeof text) && address == text;
}

}  // namespace

ClientWatch::ClientWatch(const std::string& address, int port) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", ignored)) {
    std::string name = entry.path().filename().string();
    int descriptor = -1;
    std::from_chars(name.data(), name.data() + name.size(), descriptor);
    if (is_peer(descriptor, address, port)) {
      socket_ = descriptor;
      return;
    }
  }
}

bool ClientWatch::gone() const {
  if (socket_ < 0) return false;
  pollfd watched{.fd = socket_, .events = POLLRDHUP, .revents = 0};
  return ::poll(&watched, 1, 0) > 0 && (watched.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

}  // namespace stoker
