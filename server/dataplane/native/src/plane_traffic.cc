// What the fast lane looks at, and what it counts.
#include <utility>

#include "plane.h"

namespace podium {

void Plane::publish(std::shared_ptr<const Routes> routes) {
  std::lock_guard<std::mutex> lock(routes_mutex_);
  routes_ = std::move(routes);
}

std::shared_ptr<const Routes> Plane::routes() const {
  std::lock_guard<std::mutex> lock(routes_mutex_);
  return routes_;
}

void Plane::count_use(uint64_t queue_id, const std::string& consumer) {
  Uses& uses = uses_[queue_id];
  auto known = uses.find(consumer);
  if (known != uses.end()) {
    known->second++;
  } else {
    // callers may name themselves anew with each request, and nobody may ever ask for the counts
    uses[uses.size() < most_consumers ? consumer : other_consumers]++;
  }
}

std::map<uint64_t, Uses> Plane::take_uses() {
  Lock lock(mutex_);
  return std::exchange(uses_, {});
}

std::map<uint64_t, Refusals> Plane::take_refusals() {
  Lock lock(mutex_);
  return std::exchange(refusals_, {});
}

Traffic Plane::traffic() const {
  Traffic made;
  {
    Lock lock(mutex_);
    made = traffic_;
  }
  made.handlers = handlers_.load(std::memory_order_relaxed);
  made.tensor_bytes_out = tensor_bytes_out_.load(std::memory_order_relaxed);
  made.encoded = encoded_.load(std::memory_order_relaxed);
  return made;
}

}  // namespace podium
