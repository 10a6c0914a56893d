// How long a connection may live, and how long without calls. **Pure.**
//
// Source: grpc/grpc, src/core/ext/filters/channel_idle. Its 10 % of chance keep connections that began together from ending
// together.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "clock.h"

namespace podium {

// One connection's. Units: monotonic ns. It is told how many calls are open and answers when to let it go.
class AgePolicy {
 public:
  // drain: GOAWAY, open calls go on. close: those that are left end too.
  enum class Step { nothing, drain, close };

  // 0 is no limit, but a grace of 0 is none. `chance` in [0, 1) places the age between 90 and 110 % of what is set.
  AgePolicy(int64_t idle_ms, int64_t age_ms, int64_t grace_ms, double chance, int64_t now_ns)
      : idle_ns_(idle_ms * ns_per_ms),
        grace_ns_(grace_ms * ns_per_ms),
        idle_at_ns_(idle_ms ? now_ns + idle_ns_ : no_deadline_ns),
        old_at_ns_(age_ms ? now_ns + static_cast<int64_t>(static_cast<double>(age_ms * ns_per_ms) * (0.9 + 0.2 * chance))
                          : no_deadline_ns) {}

  // Whenever that changes.
  void calls(size_t open, int64_t now_ns) { idle_at_ns_ = open || !idle_ns_ ? no_deadline_ns : now_ns + idle_ns_; }

  // `drain` and `close` are said once each. To be asked again at `next_ns`, or later.
  Step step(int64_t now_ns) {
    if (now_ns >= close_at_ns_) {
      close_at_ns_ = no_deadline_ns;
      return Step::close;
    }
    if (draining_ || now_ns < std::min(idle_at_ns_, old_at_ns_)) return Step::nothing;
    draining_ = true;
    close_at_ns_ = now_ns + grace_ns_;
    return Step::drain;
  }

  int64_t next_ns() const { return draining_ ? close_at_ns_ : std::min(idle_at_ns_, old_at_ns_); }

 private:
  int64_t idle_ns_;
  int64_t grace_ns_;
  int64_t idle_at_ns_;
  int64_t old_at_ns_;
  int64_t close_at_ns_ = no_deadline_ns;
  bool draining_ = false;
};

}  // namespace podium
