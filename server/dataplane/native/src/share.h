// A version's claim to a part of its device's time: server/dataplane/share.py, which says what it bounds.
//
// The product must be rounded before it is added, as in Python: the build turns contraction to fused operations off.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "costs.h"

namespace podium {

// Device time a version may save up while it does not use its share.
constexpr int64_t burst_ns = 50 * ns_per_ms;

// Device time that may be claimed. Units: ns. Ownership: one queue, under its data plane's lock.
class Share {
 public:
  explicit Share(double share) : share_(share) {}

  // How much of a claim there is: 0 none, 1 a full bucket. Fills the bucket up to now, so it is not const.
  double claim(int64_t now_ns) {
    if (share_ == 0.0) return 0.0;
    if (at_ns_) {
      double gained_ns = share_ * static_cast<double>(std::max(minus(now_ns, *at_ns_), int64_t{0}));
      left_ns_ = std::min(most_ns, left_ns_ + gained_ns);
    }
    at_ns_ = now_ns;
    return std::max(left_ns_, 0.0) / most_ns;
  }

  // The device has been used for `took_ns`. No more than a bucket is ever owed.
  void use(int64_t took_ns, int64_t now_ns) {
    if (share_ == 0.0) return;
    claim(now_ns);
    left_ns_ = std::max(left_ns_ - static_cast<double>(took_ns), -most_ns);
  }

  double left_ns() const { return left_ns_; }

 private:
  static constexpr double most_ns = static_cast<double>(burst_ns);

  double share_;
  double left_ns_ = most_ns;
  std::optional<int64_t> at_ns_;
};

}  // namespace podium
