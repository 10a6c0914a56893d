// The one clock: monotonic nanoseconds, the same as Python's time.monotonic_ns.
#pragma once

#include <time.h>

#include <cstdint>

namespace podium {

constexpr int64_t ns_per_us = 1'000;
constexpr int64_t ns_per_ms = 1'000'000;
constexpr int64_t ns_per_s = 1'000'000'000;

// Times that mean "none": larger than any real one, and small enough to be added to.
constexpr int64_t no_deadline_ns = int64_t{1} << 62;

inline int64_t now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * ns_per_s + now.tv_nsec;
}

}  // namespace podium
