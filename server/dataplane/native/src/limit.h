// The bound on everything that is admitted and not yet answered, over all models: server/dataplane/limit.py.
#pragma once

#include <cstdint>

namespace podium {

// Whoever refuses makes the text; `requests` and `bytes` say what it needs.
enum class Entry : uint8_t { entered, too_many_requests, too_many_bytes };

// Counts open requests and the bytes of their inputs. Ownership: the data plane, under its lock.
class InflightLimit {
 public:
  InflightLimit(uint64_t max_requests, uint64_t max_bytes) : max_requests_(max_requests), max_bytes_(max_bytes) {}

  // Takes a place; where it does not enter, nothing is counted. A single request larger than the whole bound may pass when
  // nothing else is open.
  Entry enter(uint64_t nbytes) {
    if (requests_ >= max_requests_) return Entry::too_many_requests;
    // written so that no sum can overflow, whatever a request claims to hold
    bool fits = nbytes <= max_bytes_ && bytes_ <= max_bytes_ - nbytes;
    if (requests_ && !fits) return Entry::too_many_bytes;
    ++requests_;
    bytes_ += nbytes;
    return Entry::entered;
  }

  // Gives the place of one ended request back.
  void leave(uint64_t nbytes) {
    --requests_;
    bytes_ -= nbytes;
  }

  uint64_t requests() const { return requests_; }
  uint64_t bytes() const { return bytes_; }

 private:
  uint64_t max_requests_;
  uint64_t max_bytes_;
  uint64_t requests_ = 0;
  uint64_t bytes_ = 0;
};

}  // namespace podium
