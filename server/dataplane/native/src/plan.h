// Which tickets run next on a device: server/dataplane/plan.py, rule for rule. Pure: no lock, no clock, no thread.
//
// plan.py is the oracle. A property test feeds both the same histories; change that file first, and this one to match.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "costs.h"
#include "lanes.h"
#include "ticket.h"

namespace podium {

// Why a batch was closed; why a ticket was not admitted. Names as in Python.
enum class Reason : uint8_t { full, too_large, delay, drained };
enum class Admission : uint8_t { admitted, queue_full, passed, predicted };

struct Admitted {
  Admission outcome;
  // queue_full: how long what waits takes (0: not known). predicted: how much after its deadline it would finish.
  int64_t ns;
};

struct Release {
  Queue* queue;
  std::vector<Ref<Ticket>> tickets;
  int64_t rows;
  Reason reason;
  uint64_t token;
  bool staged;
};

struct Decision {
  std::vector<Ref<Ticket>> late;
  std::unique_ptr<Release> release;        // or none
  int64_t wait_until_ns = no_deadline_ns;  // no_deadline_ns: until the next arrival
};

class Plan {
 public:
  Plan(Estimate* delivery, int slots, bool density);

  int threads_with(int instances) const;
  size_t waiting() const;
  int executors() const;
  // Throws std::invalid_argument if the id is taken.
  Queue* add_queue(const Rules& rules);
  void remove_queue(uint64_t queue_id);
  Queue* queue(uint64_t queue_id);  // nullptr if there is none

  Admitted admit(Ref<Ticket> ticket, int64_t now_ns);
  void withdraw(Ticket& ticket);
  Decision decide(int64_t now_ns);
  bool stands_still(bool takers) const;
  int beginning() const;
  void enter(uint64_t token);
  bool may_begin(uint64_t token) const;
  void begin(uint64_t token, int64_t now_ns, int64_t gather_ns);
  void executed(uint64_t token, int64_t now_ns);
  void observe(uint64_t queue_id, int64_t rows, int64_t took_ns, int64_t features_ns, int64_t now_ns);
  // Every waiting ticket, for a plane that stops.
  std::vector<Ref<Ticket>> all_waiting() const;
};

}  // namespace podium
