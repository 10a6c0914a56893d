// Lanes and queues: who stands where, and what one lane alone can tell.
#include <algorithm>
#include <cstring>

#include "lanes.h"

namespace podium {

namespace {

constexpr size_t least_waiters = 16;
// An empty line keeps no more: 128 KiB.
constexpr size_t most_idle_waiters = 4096;

std::vector<CostModel> costs_of(const Rules& rules) {
  size_t count = rules.buckets.size();
  if (!count || rules.costs_ns.empty() || rules.costs_ns.size() % count) {
    throw std::invalid_argument("every bucket of every size class needs its cost");
  }
  std::vector<CostModel> made;
  for (auto first = rules.costs_ns.begin(); first != rules.costs_ns.end(); first += static_cast<std::ptrdiff_t>(count)) {
    made.emplace_back(rules.buckets, std::vector<int64_t>(first, first + static_cast<std::ptrdiff_t>(count)));
  }
  return made;
}

}  // namespace

Line::~Line() {
  while (!empty()) remove_front()->lane = nullptr;
}

size_t Line::position(const Key& key) const {
  // most requests of a version have the same patience, so the latest to arrive is the last
  if (empty() || back().key < key) return size();
  auto before = [](const Waiter& waiter, const Key& wanted) { return waiter.key < wanted; };
  return static_cast<size_t>(std::lower_bound(begin(), end(), key, before) - begin());
}

void Line::insert(size_t index, const Key& key, Ref<Ticket>&& ticket) {
  size_t after = size() - index;
  bool forward = index < after;
  // no room on the shorter side: moving the longer one at every entry would cost its whole length each time
  if (forward ? first_ == 0 : last_ == capacity_) make_room();
  Waiter* place = waiters_.get() + first_ + index;
  if (forward) {
    Waiter* head = waiters_.get() + first_;
    std::memmove(head - 1, head, index * sizeof(Waiter));
    --first_;
    --place;
  } else {
    std::memmove(place + 1, place, after * sizeof(Waiter));
    ++last_;
  }
  *place = Waiter{key, ticket.detach()};
}

Ref<Ticket> Line::remove(size_t index) {
  size_t after = size() - index - 1;
  Waiter* place = waiters_.get() + first_ + index;
  Ref<Ticket> removed = Ref<Ticket>::take(place->ticket);
  if (index < after) {
    Waiter* head = waiters_.get() + first_;
    std::memmove(head + 1, head, index * sizeof(Waiter));
    ++first_;
  } else {
    std::memmove(place, place + 1, after * sizeof(Waiter));
    --last_;
  }
  return removed;
}

Ref<Ticket> Line::remove_front() { return Ref<Ticket>::take(waiters_[first_++].ticket); }

void Line::settle() {
  first_ = last_ = 0;
  if (capacity_ > most_idle_waiters) {
    waiters_.reset();
    capacity_ = 0;
  }
}

// At least half of the capacity is free afterwards, in two equal parts, so a move is paid for by as many entries.
void Line::make_room() {
  size_t count = size();
  size_t wanted = std::max(capacity_, least_waiters);
  while (wanted < 2 * (count + 1)) wanted *= 2;
  size_t first = (wanted - count) / 2;
  if (wanted == capacity_) {
    std::memmove(waiters_.get() + first, begin(), count * sizeof(Waiter));
  } else {
    std::unique_ptr<Waiter[]> larger(new Waiter[wanted]);
    if (count) std::memcpy(larger.get() + first, begin(), count * sizeof(Waiter));
    waiters_ = std::move(larger);
    capacity_ = wanted;
  }
  first_ = first;
  last_ = first + count;
}

Queue::Queue(const Rules& given)
    : rules(given), costs(costs_of(given)), cap_rows(given.max_batch ? given.buckets.back() : 1), share(given.share) {
  if (given.instances < 1) throw std::invalid_argument("a version has at least one instance");
}

int64_t Queue::waiting_rows() const {
  int64_t rows = 0;
  for (const Lane* lane = first_lane; lane; lane = lane->next) rows += lane->rows;
  return rows;
}

Lane* Queue::lane(const std::string& shape) {
  if (!first_lane) return nullptr;
  if (*first_lane->shape == shape) return first_lane;
  if (first_lane == last_lane) return nullptr;
  auto found = by_shape_.find(shape);
  return found == by_shape_.end() ? nullptr : &found->second;
}

Lane& Queue::add_lane(const std::string& shape, size_t size_class) {
  Lanes::iterator made;
  if (spare_.empty()) {
    made = by_shape_.try_emplace(shape).first;
  } else {
    spare_.key() = shape;
    made = by_shape_.insert(std::move(spare_)).position;
  }
  Lane& lane = made->second;
  lane.queue = this;
  lane.shape = &made->first;
  lane.costs = &costs.at(size_class);
  lane.previous = last_lane;
  lane.next = nullptr;
  (last_lane ? last_lane->next : first_lane) = &lane;
  last_lane = &lane;
  return lane;
}

void Queue::forget(Lane& lane) {
  (lane.previous ? lane.previous->next : first_lane) = lane.next;
  (lane.next ? lane.next->previous : last_lane) = lane.previous;
  lane.line.settle();
  lane.rows = 0;
  spare_ = by_shape_.extract(*lane.shape);
}

int64_t backlog_ns(const Lane& lane, size_t tickets) {
  const Queue& queue = *lane.queue;
  int64_t rows = part(static_cast<int64_t>(tickets), lane.rows, static_cast<int64_t>(lane.line.size()));
  int64_t full = rows / queue.cap_rows, rest = rows % queue.cap_rows;
  int64_t full_ns = full ? times(full, lane.costs->predict_ns(queue.cap_rows)) : 0;
  return rest ? plus(full_ns, lane.costs->predict_ns(rest)) : full_ns;
}

Prefix prefix(const Lane& lane, int64_t cap_rows) {
  Prefix made{0, 0};
  for (const Waiter& waiter : lane.line) {
    if (made.rows && made.rows + waiter.ticket->rows > cap_rows) break;
    made.rows += waiter.ticket->rows;
    ++made.count;
  }
  return made;
}

int64_t ripe_at_ns(const Lane& lane) {
  const Queue& queue = *lane.queue;
  int64_t delay_ns = queue.rules.queue_delay_ns;
  if (!delay_ns || lane.rows >= queue.cap_rows) return 0;
  // fewer tickets than rows of a batch, so this is short
  int64_t oldest_ns = lane.line.front().ticket->arrival_ns;
  int64_t tightest_ns = lane.line.front().ticket->deadline_ns;
  for (const Waiter& waiter : lane.line) {
    oldest_ns = std::min(oldest_ns, waiter.ticket->arrival_ns);
    tightest_ns = std::min(tightest_ns, waiter.ticket->deadline_ns);
  }
  return std::min(plus(oldest_ns, delay_ns), minus(tightest_ns, times(2, lane.costs->predict_ns(queue.cap_rows))));
}

double density(const Lane& lane, int64_t now_ns) {
  const Queue& queue = *lane.queue;
  int64_t finish_ns = plus(now_ns, lane.costs->predict_ns(std::min(lane.rows, queue.cap_rows)));
  int64_t count = static_cast<int64_t>(lane.line.size());
  int64_t doomed = static_cast<int64_t>(lane.line.position(Key{finish_ns, 0, lane.line.front().key.priority}));
  int64_t tickets = std::min(count - doomed, std::max(part(queue.cap_rows, count, lane.rows), int64_t{1}));
  int64_t rows = std::min(std::max(part(tickets, lane.rows, count), int64_t{1}), queue.cap_rows);
  return static_cast<double>(tickets) / static_cast<double>(std::max(lane.costs->predict_ns(rows), int64_t{1}));
}

}  // namespace podium
