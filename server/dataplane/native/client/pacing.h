// When requests are due. An open loop sends on a schedule of its own, whatever the server does; a closed loop sends when an
// answer has come, so it hides how long users of a slow server would have waited.
#pragma once

#include <cstdint>
#include <random>

namespace podium::client {

// Arrivals at `per_s` a second on average. `cv` is what gaps deviate by, over their mean: with 1 they are exponential, and the
// arrivals a Poisson process; with more they come in bursts, and gaps are gamma-distributed. Not for several threads.
class Pacer {
 public:
  Pacer(double per_s, uint64_t seed, double cv = 1.0)
      : mean_ns_(1e9 / per_s), poisson_(cv == 1.0), random_(seed), bursty_gap_(1.0 / (cv * cv), cv * cv) {}

  void start(int64_t now_ns) {
    // the sum is kept in floating point: whole nanoseconds would be off by a half for every gap
    due_ns_ = static_cast<double>(now_ns);
    advance();
  }
  int64_t due_ns() const { return static_cast<int64_t>(due_ns_); }
  void advance() { due_ns_ += (poisson_ ? gap_(random_) : bursty_gap_(random_)) * mean_ns_; }

 private:
  double mean_ns_, due_ns_ = 0.0;
  bool poisson_;
  std::mt19937_64 random_;
  std::exponential_distribution<double> gap_{1.0};
  std::gamma_distribution<double> bursty_gap_;
};

// Waits until the epoll set `epoll` has something, or `until_ns` (podium::now_ns) has come. Sleeps while that is far, and spins
// for the last part: a sleeper wakes up to 0.1 ms late, which would be the server's latency in the report.
void wait_until(int epoll, int64_t until_ns);

}  // namespace podium::client
