// A ticket: one admitted request on its way through a queue. The same states as server/dataplane/ticket.py.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "clock.h"
#include "ref.h"

namespace podium {

// A ticket without a deadline is ordered as if it were due this long after it arrived (ticket.py, PATIENCE_NS).
constexpr int64_t patience_ns = 10 * ns_per_s;

enum class State : uint8_t { waiting = 0, taken = 1, ended = 2 };

// Why a ticket ended without an execution though its caller was there.
enum class Refused : uint8_t { no = 0, expired = 1, stopping = 2, failed = 3 };

struct Lane;

// Units: monotonic ns; rows. `priority` 0 is the most urgent. `shape` names the lane: equal for two requests exactly when their
// rows may be concatenated, once padded; `size_class`: whose costs its batch has. `queue_id`: the number by which it enters, then
// the queue in which it waits. `lane` and `number` are the plan's, while it waits.
// Ownership: whoever admitted it, under the plane's lock, from admission until ended.
class Ticket : public Counted {
 public:
  uint64_t queue_id = 0;
  int64_t arrival_ns = 0;
  int64_t deadline_ns = no_deadline_ns;
  int64_t due_ns = 0;
  uint64_t nbytes = 0;
  uint64_t id_hash = 0;  // server/core/hashing.py
  uint32_t rows = 1;
  uint32_t size_class = 0;
  int32_t priority = 0;
  State state = State::waiting;
  Refused refused = Refused::no;
  bool staged = false;
  bool native = false;  // of the fast lane: a NativeTicket
  std::string shape;

  Lane* lane = nullptr;
  uint64_t number = 0;

  void set_deadline(int64_t arrival, int64_t deadline) {
    arrival_ns = arrival;
    deadline_ns = deadline;
    due_ns = deadline < no_deadline_ns ? deadline : arrival + patience_ns;
  }
};

}  // namespace podium
