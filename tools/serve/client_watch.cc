#include "tools/serve/client_watch.h"

#include <poll.h>

namespace stoker {

bool ClientWatch::gone() const {
  pollfd watched{.fd = socket_, .events = POLLRDHUP, .revents = 0};
  return ::poll(&watched, 1, 0) > 0 && (watched.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

}  // namespace stoker
