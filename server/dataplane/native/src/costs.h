// How long will a batch take? server/dataplane/costs.py: Jacobson's estimator over a table measured at warm-up.
//
// Python's ints never overflow and these do, so sums and products of times saturate here: whatever is beyond 2**63 ns is as
// late as can be, either way. Doubles take the same operations in the same order as in Python, so both planes learn the same.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "clock.h"

namespace podium {

inline int64_t plus(int64_t one, int64_t other) {
  int64_t sum;
  if (!__builtin_add_overflow(one, other, &sum)) return sum;
  return other < 0 ? std::numeric_limits<int64_t>::min() : std::numeric_limits<int64_t>::max();
}

inline int64_t minus(int64_t one, int64_t other) {
  int64_t difference;
  if (!__builtin_sub_overflow(one, other, &difference)) return difference;
  return other < 0 ? std::numeric_limits<int64_t>::max() : std::numeric_limits<int64_t>::min();
}

inline int64_t times(int64_t one, int64_t other) {
  int64_t product;
  if (!__builtin_mul_overflow(one, other, &product)) return product;
  return (one < 0) != (other < 0) ? std::numeric_limits<int64_t>::min() : std::numeric_limits<int64_t>::max();
}

// one * other / divisor, none of them negative, `divisor` not 0. The product may need more than 64 bits: tickets by rows do
// where both are many. The result must fit, and does: everybody asks for a part of `one` or of `other`.
inline int64_t part(int64_t one, int64_t other, int64_t divisor) {
  int64_t product;
  if (!__builtin_mul_overflow(one, other, &product)) return product / divisor;
  return static_cast<int64_t>(static_cast<__int128>(one) * other / divisor);
}

// Python's //, for a positive divisor: C++ rounds towards 0, and a clock that two threads read may seem to go back.
inline int64_t floor_divide(int64_t dividend, int64_t divisor) { return dividend / divisor - (dividend % divisor < 0 ? 1 : 0); }

// Once predictions alone have refused work for this long, one batch runs regardless; see costs.py for the three.
constexpr int64_t trial_after_ns = ns_per_s;
constexpr int64_t trial_spacing = 20;
constexpr int64_t trial_at_latest_ns = 30 * ns_per_s;

// How long something takes: mean plus mean deviation of what was observed. Units: ns. 0 until the first observation.
class Estimate {
 public:
  explicit Estimate(int64_t first_ns = 0) : mean_ns_(static_cast<double>(first_ns)) {}

  int64_t predict_ns() const {
    // a double beyond 2**62 has no int64 it is sure to fit in; no duration comes near
    constexpr double most = static_cast<double>(no_deadline_ns);
    return static_cast<int64_t>(std::clamp(mean_ns_ + deviation_ns_, -most, most));
  }

  void observe(int64_t took_ns) {
    if (mean_ns_ == 0.0) {
      mean_ns_ = static_cast<double>(took_ns);
      return;
    }
    double error = static_cast<double>(took_ns) - mean_ns_;
    mean_ns_ += error / 8;
    deviation_ns_ += (std::fabs(error) - deviation_ns_) / 4;
  }

  // Predict no more than `other` does.
  void at_most(const Estimate& other) {
    if (predict_ns() > other.predict_ns()) *this = other;
  }

 private:
  double mean_ns_;
  double deviation_ns_ = 0.0;
};

// Predicted execution time by rows. Units: rows; ns. Ownership: one queue, under its data plane's lock.
class CostModel {
 public:
  // Throws std::invalid_argument unless `buckets_rows` ascend from 1 row or more and each has its cost.
  CostModel(std::vector<int64_t> buckets_rows, const std::vector<int64_t>& costs_ns) : buckets_(std::move(buckets_rows)) {
    bool ascend = std::adjacent_find(buckets_.begin(), buckets_.end(), std::greater_equal<>()) == buckets_.end();
    if (buckets_.empty() || buckets_.front() < 1 || !ascend) throw std::invalid_argument("buckets must ascend");
    if (buckets_.size() != costs_ns.size()) throw std::invalid_argument("every bucket needs its cost");
    for (int64_t cost_ns : costs_ns) estimates_.emplace_back(cost_ns);
    refusing_since_ns_.resize(buckets_.size());
  }

  int64_t largest() const { return buckets_.back(); }
  const std::vector<int64_t>& buckets() const { return buckets_; }

  // 0 where nothing was measured for the bucket. All that take `rows` throw std::out_of_range beyond the largest bucket.
  int64_t predict_ns(int64_t rows) const { return estimates_[index(rows)].predict_ns(); }

  // Learn from one execution of `rows` rows that has ended now; smaller buckets learn with it.
  void observe(int64_t rows, int64_t took_ns, int64_t now_ns) {
    size_t found = index(rows);
    Estimate& estimate = estimates_[found];
    if (on_trial(rows, minus(now_ns, took_ns)) && took_ns < estimate.predict_ns()) {
      estimate = Estimate(took_ns);
    } else {
      estimate.observe(took_ns);
    }
    for (size_t smaller = 0; smaller < found; ++smaller) estimates_[smaller].at_most(estimate);
    for (size_t smaller = 0; smaller <= found; ++smaller) refusing_since_ns_[smaller].reset();
  }

  // Note that the prediction for `rows` rows alone refused work.
  void refused(int64_t rows, int64_t now_ns) {
    std::optional<int64_t>& since_ns = refusing_since_ns_[index(rows)];
    if (!since_ns) since_ns = now_ns;
  }

  // Whether predictions for `rows` rows must be ignored until as many have run.
  bool on_trial(int64_t rows, int64_t now_ns) const {
    size_t found = index(rows);
    if (!refusing_since_ns_[found]) return false;
    int64_t spacing_ns = std::min(times(trial_spacing, estimates_[found].predict_ns()), trial_at_latest_ns);
    return minus(now_ns, *refusing_since_ns_[found]) >= std::max(trial_after_ns, spacing_ns);
  }

 private:
  // the first bucket that holds them; there are few, and most callers ask for the last
  size_t index(int64_t rows) const {
    if (rows > buckets_.back()) throw std::out_of_range("more rows than the largest bucket holds");
    size_t found = buckets_.size() - 1;
    while (found && buckets_[found - 1] >= rows) --found;
    return found;
  }

  std::vector<int64_t> buckets_;
  std::vector<Estimate> estimates_;
  std::vector<std::optional<int64_t>> refusing_since_ns_;
};

}  // namespace podium
