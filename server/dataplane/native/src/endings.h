// How a call of the fast lane ends that is not executed: code, text and trailing metadata, as server/transport/status.py has them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "http2.h"

namespace podium {

struct Ending {
  Code code = Code::ok;
  std::string text;
  Metadata trailing;
};

// Codes in force for what the fast lane itself refuses. `pushback`: say when to try again (error_codes = "strict").
struct Endings {
  Code overloaded = Code::unavailable;
  Code expired = Code::unavailable;
  Code stopping = Code::unavailable;
  bool pushback = false;

  Ending queue_full(std::string_view id, int64_t waits_ns) const;
  Ending too_many_requests(std::string_view id, uint64_t requests) const;
  Ending too_many_bytes(std::string_view id, uint64_t bytes) const;
  Ending passed() const;
  Ending predicted(int64_t late_ns) const;
  Ending server_stops() const;
  Ending server_leaves() const;

 private:
  Ending full(std::string_view id, std::string text, int64_t retry_ms) const;
  Ending late(std::string text) const;
};

}  // namespace podium
