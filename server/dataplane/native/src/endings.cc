#include "endings.h"

#include <cmath>
#include <cstdio>
#include <string>
#include <utility>

#include "clock.h"

namespace podium {
namespace {

constexpr const char* pushback_name = "grpc-retry-pushback-ms";
// After how long an overloaded server is asked again where nothing says so (status.py, RETRY_S).
constexpr int64_t retry_ms = 100;
constexpr const char* full_text = "Exceeds maximum queue size";
constexpr const char* expired_text = "Request timeout expired";

}  // namespace

Ending Endings::full(std::string_view id, std::string text, int64_t wait_ms) const {
  Ending made{overloaded, "[request id: ", {}};
  made.text.append(id.empty() ? std::string_view("<id_unknown>") : id).append("] ").append(text);
  if (pushback) made.trailing.emplace_back(pushback_name, std::to_string(wait_ms));
  return made;
}

Ending Endings::late(std::string text) const {
  Ending made{expired, std::move(text), {}};
  // its time is over: another attempt would be late from the start
  if (pushback) made.trailing.emplace_back(pushback_name, "-1");
  return made;
}

Ending Endings::queue_full(std::string_view id, int64_t waits_ns) const {
  // nearbyint rounds half to even, as Python's round does
  double seconds = static_cast<double>(waits_ns) / static_cast<double>(ns_per_s);
  return full(id, full_text, waits_ns ? static_cast<int64_t>(std::nearbyint(1000 * seconds)) : retry_ms);
}

Ending Endings::too_many_requests(std::string_view id, uint64_t requests) const {
  return full(id, std::string(full_text) + ": " + std::to_string(requests) + " requests are in flight in this server",
              retry_ms);
}

Ending Endings::too_many_bytes(std::string_view id, uint64_t bytes) const {
  return full(id, std::string(full_text) + ": " + std::to_string(bytes) + " bytes of inputs are in flight in this server",
              retry_ms);
}

Ending Endings::passed() const { return late(expired_text); }

Ending Endings::predicted(int64_t late_ns) const {
  char text[128];
  std::snprintf(text, sizeof text, "%s: predicted to finish %.3f ms after its deadline", expired_text,
                static_cast<double>(late_ns) / 1e6);
  return late(text);
}

// server/transport/streams.py, LEAVING
Ending Endings::server_leaves() const {
  return Ending{stopping, "GRPC server is shutting down and has stopped accepting new requests.", {}};
}

Ending Endings::server_stops() const { return Ending{stopping, "Server is stopping", {}}; }

}  // namespace podium
