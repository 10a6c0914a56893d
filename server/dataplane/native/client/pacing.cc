#include "pacing.h"

#include <poll.h>

#include "clock.h"

namespace podium::client {

namespace {
constexpr int64_t spin_ns = 150 * ns_per_us;
}

void wait_until(int epoll, int64_t until_ns) {
  pollfd watched{epoll, POLLIN, 0};
  for (;;) {
    const int64_t left_ns = until_ns - now_ns();
    if (left_ns <= 0) return;
    timespec patience{0, 0};
    if (left_ns > spin_ns) {
      patience.tv_sec = (left_ns - spin_ns) / ns_per_s;
      patience.tv_nsec = (left_ns - spin_ns) % ns_per_s;
    }
    // an interrupted wait is taken up again; any other failure leaves it to the caller's epoll_wait to complain
    if (ppoll(&watched, 1, &patience, nullptr) > 0) return;
  }
}

}  // namespace podium::client
