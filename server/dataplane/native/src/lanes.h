// Where tickets wait: server/dataplane/lanes.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "costs.h"
#include "share.h"
#include "ticket.h"

namespace podium {

// As much of QueueRules (interface.py) as planning needs.
struct Rules {
  uint64_t queue_id = 0;
  std::vector<int64_t> buckets;
  std::vector<int64_t> costs_ns;
  int64_t max_batch = 0;
  int64_t max_requests = 0;
  int64_t queue_delay_ns = 0;
  bool padding = false;
  bool early_drop = false;
  bool decoupled = false;
  int instances = 1;
  double share = 0.0;
};

}  // namespace podium
