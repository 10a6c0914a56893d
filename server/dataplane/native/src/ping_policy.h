// Pings of HTTP/2: how often callers may, and when the server does. **Pure.**
//
// Source: grpc/grpc, src/core/ext/transport/chttp2/transport/ping_abuse_policy.cc and chttp2_transport.cc (keepalive).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "clock.h"

namespace podium {

// Strikes of one connection, for pings that come too often. Units: monotonic ns.
class PingStrikes {
 public:
  // `max_strikes` 0: nobody is ever sent away.
  PingStrikes(int64_t min_interval_ms, int64_t max_strikes, bool without_calls)
      : min_interval_ns_(min_interval_ms * ns_per_ms), max_strikes_(max_strikes), without_calls_(without_calls) {}

  // A ping came, not an answer to one. True: the connection is to end (GOAWAY, ENHANCE_YOUR_CALM, "too_many_pings").
  bool received(int64_t now_ns, bool has_calls) {
    // a connection without calls has no more business than TCP's own keepalive (RFC 1122: two hours)
    int64_t interval_ns = has_calls || without_calls_ ? min_interval_ns_ : idle_interval_ns;
    bool too_soon = pinged_ && now_ns < last_ns_ + interval_ns;
    pinged_ = true;
    last_ns_ = now_ns;
    if (!too_soon) return false;
    strikes_ = std::min(strikes_ + 1, std::numeric_limits<int64_t>::max() - 1);
    return max_strikes_ > 0 && strikes_ > max_strikes_;
  }

  // Headers, data or a window were sent: a caller may measure what it receives by pings.
  void sent() {
    pinged_ = false;
    strikes_ = 0;
  }

 private:
  static constexpr int64_t idle_interval_ns = 7'200 * ns_per_s;
  int64_t min_interval_ns_;
  int64_t max_strikes_;
  bool without_calls_;
  bool pinged_ = false;
  int64_t last_ns_ = 0;
  int64_t strikes_ = 0;
};

// When a silent caller is asked whether it is there, and when it is given up. Units: monotonic ns.
class Keepalive {
 public:
  enum class Step { nothing, ping, close };

  // `max_pings` without data between them; 0: any number.
  Keepalive(int64_t time_ms, int64_t timeout_ms, bool without_calls, int64_t max_pings, int64_t now_ns)
      : time_ns_(time_ms * ns_per_ms),
        timeout_ns_(timeout_ms * ns_per_ms),
        without_calls_(without_calls),
        max_pings_(max_pings),
        next_ns_(now_ns + time_ns_) {}

  // Any bytes came: whoever sends is there, and an answer to the ping is among them or will be.
  void heard(int64_t now_ns) {
    waiting_ = false;
    next_ns_ = now_ns + time_ns_;
  }

  // Headers or data were sent.
  void sent_data() { pings_ = 0; }

  // What to do now; `ping` and `close` are said once each. To be asked again at `next_ns`, or later.
  Step step(int64_t now_ns, bool has_calls) {
    if (now_ns < next_ns_) return Step::nothing;
    if (waiting_) {
      next_ns_ = no_deadline_ns;
      return Step::close;
    }
    if (!(has_calls || without_calls_) || (max_pings_ > 0 && pings_ >= max_pings_)) {
      next_ns_ = now_ns + time_ns_;
      return Step::nothing;
    }
    waiting_ = true;
    pings_ += 1;
    next_ns_ = now_ns + timeout_ns_;
    return Step::ping;
  }

  int64_t next_ns() const { return next_ns_; }

 private:
  int64_t time_ns_;
  int64_t timeout_ns_;
  bool without_calls_;
  int64_t max_pings_;
  int64_t next_ns_;
  int64_t pings_ = 0;
  bool waiting_ = false;
};

}  // namespace podium
