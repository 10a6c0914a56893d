// What a run saw, and the one JSON line that says it.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "histogram.h"
#include "payload.h"

namespace podium::client {

// Every request that was sent is in exactly one of: right, late, wrong, errors, unanswered, settling.
struct Report {
  uint64_t sent = 0, right = 0, late = 0, unanswered = 0;
  uint64_t settling = 0;  // of the time before the measured one, and not answered wrongly
  uint64_t wrong[verdicts] = {};
  // keys: "4" (a grpc-status), "none" (an answer without one), "http:503", "reset:7" (an HTTP/2 code), "refused" (never looked
  // at), "lost" (the connection ended)
  std::map<std::string, uint64_t> errors;
  std::string first_error;  // the message of the first grpc-status that was not 0

  uint64_t connects = 0, failed_connects = 0, lost_connections = 0;
  Histogram latency;   // of right and late answers; from when they were due in an open loop, else from when they were sent
  Histogram lateness;  // open loop: from due to sent
  int64_t start_ns = 0, end_ns = 0;  // to the last answer
  int64_t offered_until_ns = 0;      // of an open loop: when nothing more was due
  int64_t behind_ns = 0;             // and how late it was then with what it never sent
  double cpu_s = 0.0;

  uint64_t wrong_answers() const;
  // Whether the client itself was so late that its latencies say little of the server.
  bool is_void() const;
  std::string json(const Payload& payload) const;
};

// User and system CPU seconds of this process.
double own_cpu_s();

}  // namespace podium::client
