// Which queue a request waits in, where its version has one on each of several devices: server/dataplane/entrance.py, rule for
// rule. Pure: no lock, no clock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "plan.h"

namespace podium {

// The queues of one version, a device each, in the order in which they were opened. Ownership: the data plane, under its lock.
class Entrance {
 public:
  bool empty() const { return seats_.empty(); }
  // The first queue that admits requests; nullptr where there is none.
  const Queue* first_open() const;
  // One more device. `queue` is the plan's, and both must outlive their place here.
  void add(Plan& plan, Queue& queue);
  void remove(const Queue& queue);

  // Lets a ticket wait in the open queue that is predicted to finish it first, of those that take it, whose number the ticket has
  // then. Where all of them refuse: what the first choice said, and its number. `passed` without an open one. Allocates nothing
  // of its own. Throws what `Plan::admit` does.
  Admitted admit(const Ref<Ticket>& ticket, int64_t now_ns);

  // Admits what waits in a closed queue to the others, the most urgent first. What none of them takes waits on. Returns those that
  // cannot be in time anywhere: they wait no longer, and are open until they have their answers.
  std::vector<Ref<Ticket>> move(Queue& queue, int64_t now_ns);

 private:
  struct Seat {
    Plan* plan;
    Queue* queue;
  };
  struct Rank {
    int64_t worth;  // when it would be finished; where that is not known of all of them, rows that are open
    size_t turn;
    size_t seat;
    bool operator<(const Rank& other) const { return worth != other.worth ? worth < other.worth : turn < other.turn; }
  };

  void rank(const Ticket& ticket, int64_t now_ns);

  std::vector<Seat> seats_;
  std::vector<Rank> ranks_;  // only their memory is kept from call to call
  size_t turn_ = 0;
};

}  // namespace podium
