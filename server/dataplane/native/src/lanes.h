// Where tickets wait: server/dataplane/lanes.py. One lane for those that may share a batch, one queue for each version.
//
// All of it is the plan's, under the plane's lock; the plane itself reads and writes `open` and `closed` of a queue.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "costs.h"
#include "share.h"
#include "ticket.h"

namespace podium {

// As much of QueueRules (interface.py) as planning needs. `costs_ns`: per bucket, of each size class in turn.
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

// Priority, due time, number of arrival: what comes first is taken first.
struct Key {
  int64_t due_ns;
  uint64_t number;
  int32_t priority;

  bool operator<(const Key& other) const {
    if (priority != other.priority) return priority < other.priority;
    if (due_ns != other.due_ns) return due_ns < other.due_ns;
    return number < other.number;
  }
};

// A ticket in its order. Its reference is held by hand, so that thousands can be moved as plain memory.
struct Waiter {
  Key key;
  Ticket* ticket;
};

// Waiters in order of their keys, with room at both ends: the head leaves without a move, and whoever enters or leaves between
// moves only the shorter side. One memory move beats a tree up to any length that a queue has.
class Line {
 public:
  Line() = default;
  Line(const Line&) = delete;
  Line& operator=(const Line&) = delete;
  ~Line();

  size_t size() const { return last_ - first_; }
  bool empty() const { return first_ == last_; }
  const Waiter& operator[](size_t index) const { return waiters_[first_ + index]; }
  const Waiter& front() const { return waiters_[first_]; }
  const Waiter& back() const { return waiters_[last_ - 1]; }
  const Waiter* begin() const { return waiters_.get() + first_; }
  const Waiter* end() const { return waiters_.get() + last_; }

  // How many come before `key` (bisect_left).
  size_t position(const Key& key) const;
  // `index` must be the key's position. The line holds the reference from now on.
  void insert(size_t index, const Key& key, Ref<Ticket>&& ticket);
  // The reference goes to the caller.
  Ref<Ticket> remove(size_t index);
  Ref<Ticket> remove_front();
  // Of an empty line: memory that a burst left behind is given back.
  void settle();

 private:
  void make_room();

  std::unique_ptr<Waiter[]> waiters_;
  size_t capacity_ = 0;
  size_t first_ = 0;
  size_t last_ = 0;
};

struct Queue;

// Tickets that may share a batch, most urgent first. Never empty while its queue lists it. `costs`: of their size class.
struct Lane {
  Queue* queue = nullptr;
  const std::string* shape = nullptr;
  CostModel* costs = nullptr;
  Line line;
  int64_t rows = 0;
  Lane* previous = nullptr;  // in the order in which the lanes came into being, as in Python's dict
  Lane* next = nullptr;
};

// One version's waiting tickets, by lane. `open` counts tickets that are admitted and not ended, `open_rows` their rows, `running`
// its batches that run or are staged. `costs` by size class. `lead`: how much longer a batch takes that is not prepared while
// another one executes.
struct Queue {
  // Throws std::invalid_argument for rules that cannot be planned with.
  explicit Queue(const Rules& given);
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  Rules rules;
  std::vector<CostModel> costs;
  int64_t cap_rows;
  Share share;
  int64_t waiting = 0;
  int64_t open = 0;
  int64_t open_rows = 0;
  int running = 0;
  bool closed = false;
  Estimate lead;
  Lane* first_lane = nullptr;
  Lane* last_lane = nullptr;

  int64_t waiting_rows() const;
  size_t lanes() const { return by_shape_.size(); }
  // nullptr if nothing of this shape waits.
  Lane* lane(const std::string& shape);
  Lane& add_lane(const std::string& shape, size_t size_class);
  // Of an empty lane (shapes are unbounded).
  void forget(Lane& lane);

 private:
  using Lanes = std::unordered_map<std::string, Lane>;

  Lanes by_shape_;
  // the last lane that was forgotten, memory and all: a queue of one shape is empty again and again
  Lanes::node_type spare_;
};

// A number of tickets from a lane's head, and their rows.
struct Prefix {
  size_t count;
  int64_t rows;
};

// The questions to one lane alone; lanes.py says what each means.
int64_t backlog_ns(const Lane& lane, size_t tickets);
Prefix prefix(const Lane& lane, int64_t cap_rows);
int64_t ripe_at_ns(const Lane& lane);
double density(const Lane& lane, int64_t now_ns);

}  // namespace podium
