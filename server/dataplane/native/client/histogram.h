// Latencies in a log-linear histogram, as HdrHistogram keeps them: 128 buckets for every doubling, so a percentile is at most
// 0.8 % too high, and never too low. Fixed memory, whatever is recorded.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace podium::client {

class Histogram {
 public:
  void record(int64_t value_ns) {
    const uint64_t value = value_ns > 0 ? static_cast<uint64_t>(value_ns) : 0;
    ++buckets_[index_of(value)];
    ++count_;
    sum_ += static_cast<double>(value);
    largest_ = std::max(largest_, value);
  }

  uint64_t count() const { return count_; }
  uint64_t largest_ns() const { return largest_; }
  double mean_ns() const { return count_ ? sum_ / static_cast<double>(count_) : 0.0; }

  // The smallest value that at least `share` (0..1) of the values do not exceed, rounded up to its bucket's upper edge.
  uint64_t quantile_ns(double share) const {
    if (count_ == 0) return 0;
    const double exact = share * static_cast<double>(count_);
    uint64_t rank = static_cast<uint64_t>(exact);
    if (static_cast<double>(rank) < exact) ++rank;
    rank = std::max<uint64_t>(rank, 1);
    uint64_t seen = 0;
    for (size_t index = 0; index < buckets_.size(); ++index) {
      seen += buckets_[index];
      if (seen >= rank) return std::min(upper_edge(index), largest_);
    }
    return largest_;
  }

 private:
  static constexpr int precision_bits = 7;
  static constexpr uint64_t per_octave = uint64_t{1} << precision_bits;

  static size_t index_of(uint64_t value) {
    if (value < 2 * per_octave) return value;
    const int shift = 63 - __builtin_clzll(value) - precision_bits;
    return static_cast<size_t>(shift) * per_octave + static_cast<size_t>(value >> shift);
  }

  static uint64_t upper_edge(size_t index) {
    if (index < 2 * per_octave) return index;
    const int shift = static_cast<int>(index / per_octave) - 1;
    return ((index % per_octave + per_octave + 1) << shift) - 1;
  }

  std::vector<uint64_t> buckets_ = std::vector<uint64_t>((64 - precision_bits + 1) * per_octave);
  uint64_t count_ = 0, largest_ = 0;
  double sum_ = 0.0;
};

}  // namespace podium::client
