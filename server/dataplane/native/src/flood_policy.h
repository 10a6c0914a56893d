// Frames that cost the server much and their sender nothing: how many of them a connection may send. **Pure.**
//
// CVE-2023-44487 (calls begun and reset at once), CVE-2019-9518 (frames without content), CVE-2024-28182 (headers continued for
// ever), CVE-2019-9511 to 9517. Each is a bucket that time fills, and honest work too: a caller that is answered may do more.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "clock.h"

namespace podium {

// How many at once, how many a second more.
struct FloodLimits {
  double resets = 1000, resets_per_s = 100;
  double empty = 100, empty_per_s = 10;
  double control = 10'000, control_per_s = 1'000;
  // for each frame of data, sent or received: windows are moved and round trips measured as data flows
  double control_per_data = 10;
  // a reset of a call that is older is a deadline or a change of mind
  int64_t rapid_ns = ns_per_ms;
  // of one block of headers; each carries 16 KiB where it is meant honestly
  size_t continuations = 8;
};

// So many at once, so many a second more.
class Bucket {
 public:
  Bucket(double size, double per_s, int64_t now_ns) : size_(size), per_s_(per_s), left_(size), at_ns_(now_ns) {}

  // False: there is none left.
  bool take(int64_t now_ns) {
    if (now_ns > at_ns_) {
      give(static_cast<double>(now_ns - at_ns_) * per_s_ / static_cast<double>(ns_per_s));
      at_ns_ = now_ns;
    }
    if (left_ < 1) return false;
    left_ -= 1;
    return true;
  }
  void give(double count) { left_ = std::min(size_, left_ + count); }

 private:
  double size_;
  double per_s_;
  double left_;
  int64_t at_ns_;
};

// One connection's. Units: monotonic ns. Where a function says true, the connection is to end (GOAWAY, ENHANCE_YOUR_CALM).
class FloodPolicy {
 public:
  FloodPolicy(const FloodLimits& limits, int64_t now_ns)
      : limits_(limits),
        resets_(limits.resets, limits.resets_per_s, now_ns),
        empty_(limits.empty, limits.empty_per_s, now_ns),
        control_(limits.control, limits.control_per_s, now_ns) {}

  // Every frame that begins, by HTTP/2's numbers (RFC 9113, 6): of its header.
  bool frame(uint8_t type, uint8_t flags, size_t length_bytes, int64_t now_ns) {
    switch (type) {
      case data_frame:
        if (length_bytes) control_.give(limits_.control_per_data);
        return !length_bytes && !(flags & end_flag) && !empty_.take(now_ns);
      case headers_frame:
        continued_ = 0;
        return false;
      case continuation_frame:
        return ++continued_ > limits_.continuations;
      default:
        return !control_.take(now_ns);
    }
  }

  // Its caller reset a call that it had begun `age_ns` ago and that had not been answered.
  bool reset(int64_t age_ns, int64_t now_ns) { return age_ns < limits_.rapid_ns && !resets_.take(now_ns); }

  void answered() { resets_.give(1); }
  void sent_data() { control_.give(limits_.control_per_data); }

 private:
  static constexpr uint8_t data_frame = 0, headers_frame = 1, continuation_frame = 9, end_flag = 1;
  FloodLimits limits_;
  Bucket resets_, empty_, control_;
  size_t continued_ = 0;
};

}  // namespace podium
