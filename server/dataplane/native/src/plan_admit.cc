// Admission: what is predicted to finish after its deadline is refused at once.
#include <algorithm>
#include <stdexcept>

#include "plan.h"

namespace podium {

namespace {

void check_rows(const Queue& queue, const Ticket& ticket) {
  if (ticket.rows < 1 || ticket.rows > queue.costs.at(ticket.size_class).largest())
    throw std::out_of_range("rows that no bucket holds");
}

}  // namespace

Admitted Plan::admit(Ref<Ticket> ticket, int64_t now_ns) {
  Queue* found = queue(ticket->queue_id);
  if (!found) throw std::out_of_range("no queue of this id");
  return admit(*found, std::move(ticket), now_ns);
}

Admitted Plan::admit(Queue& queue, Ref<Ticket>&& ticket, int64_t now_ns) {
  check_rows(queue, *ticket);
  CostModel& costs = queue.costs[ticket->size_class];
  if (queue.rules.max_requests && queue.waiting >= queue.rules.max_requests) {
    int64_t waits_ns = 0;
    for (const Lane* lane = queue.first_lane; lane; lane = lane->next) {
      waits_ns = plus(waits_ns, backlog_ns(*lane, lane->line.size()));
    }
    return {Admission::queue_full, floor_divide(waits_ns, executors_)};
  }
  if (ticket->deadline_ns <= now_ns) return {Admission::passed, 0};
  Key key{ticket->due_ns, ++arrivals_, ticket->priority};
  Lane* lane = queue.lane(ticket->shape);
  size_t before = lane ? lane->line.position(key) : 0;
  if (queue.rules.early_drop && ticket->deadline_ns < no_deadline_ns && !density_) {
    Prediction own = predict_finish(queue, lane, before, key, *ticket, now_ns);
    int64_t late_ns = minus(plus(own.finish_ns, delivery_->predict_ns()), ticket->deadline_ns);
    if (late_ns > 0 && !costs.on_trial(own.rows, now_ns)) {
      costs.refused(own.rows, now_ns);
      return {Admission::predicted, late_ns};
    }
  }
  if (!lane) lane = &queue.add_lane(ticket->shape, ticket->size_class);
  Ticket& admitted = *ticket;
  lane->line.insert(before, key, std::move(ticket));
  lane->rows += admitted.rows;
  admitted.lane = lane;
  admitted.number = key.number;
  ++queue.waiting;
  ++queue.open;
  queue.open_rows += admitted.rows;
  ++waiting_;
  return {Admission::admitted, 0};
}

std::optional<int64_t> Plan::finish_ns(Queue& queue, const Ticket& ticket, int64_t now_ns) {
  check_rows(queue, ticket);
  if (queue.rules.decoupled) return std::nullopt;  // how long a stream of answers takes says nothing about the next one
  Key key{ticket.due_ns, arrivals_ + 1, ticket.priority};
  Lane* lane = queue.lane(ticket.shape);
  Prediction own = predict_finish(queue, lane, lane ? lane->line.position(key) : 0, key, ticket, now_ns);
  if (!queue.costs[ticket.size_class].predict_ns(own.rows)) return std::nullopt;
  return own.finish_ns;
}

// When each executor could begin what is decided on next, soonest first.
const std::vector<int64_t>& Plan::free_at_ns(int64_t now_ns) {
  free_.clear();
  for (const Running& one : running_) {
    if (!one.staged) free_.push_back(std::max(one.until_ns(), now_ns));
  }
  if (free_.size() < static_cast<size_t>(executors_)) free_.resize(static_cast<size_t>(executors_), now_ns);
  for (const Running& one : running_) {
    if (!one.staged) continue;
    std::sort(free_.begin(), free_.end());
    free_.front() = plus(free_.front(), one.took_ns);
  }
  std::sort(free_.begin(), free_.end());
  return free_;
}

// Predicted time of what goes before a ticket with this key and waits elsewhere than in its own lane.
int64_t Plan::ahead_ns(Queue& queue, const Lane* lane, const Key& key, int64_t now_ns) {
  int64_t ahead_ns = 0;
  double claim = queue.share.claim(now_ns);
  for (const auto& other_queue : queues_) {
    double more = other_queue->share.claim(now_ns) - claim;
    if (more < 0) continue;
    for (const Lane* other = other_queue->first_lane; other; other = other->next) {
      if (other == lane || !(more != 0.0 || other->line.front().key < key)) continue;
      ahead_ns = plus(ahead_ns, backlog_ns(*other, more != 0.0 ? other->line.size() : other->line.position(key)));
    }
  }
  return ahead_ns;
}

// When a ticket with this key, `before` tickets behind its lane's head, would be executed (the running batch, what is more
// urgent, then its own batch), and the rows of that batch.
Plan::Prediction Plan::predict_finish(Queue& queue, const Lane* lane, size_t before, const Key& key, const Ticket& ticket,
                                      int64_t now_ns) {
  const CostModel& costs = queue.costs[ticket.size_class];
  int64_t rows = ticket.rows;
  int64_t part_ns = floor_divide(ahead_ns(queue, lane, key, now_ns), executors_);
  // the executors this version can use, each behind its part of what is ahead
  int64_t soonest_ns = plus(now_ns, queue.lead.predict_ns());
  const std::vector<int64_t>& free = free_at_ns(now_ns);
  auto free_ns = [&](int64_t index) { return std::max(plus(free[static_cast<size_t>(index)], part_ns), soonest_ns); };
  if (!lane) return {plus(free_ns(0), costs.predict_ns(rows)), rows};
  int64_t usable = std::min<int64_t>(static_cast<int64_t>(free.size()), queue.rules.instances);
  int64_t rows_before = part(static_cast<int64_t>(before), lane->rows, static_cast<int64_t>(lane->line.size()));
  int64_t full = rows_before / queue.cap_rows, rest = rows_before % queue.cap_rows;
  int64_t rounds = full / usable, odd = full % usable;
  int64_t start_ns = free_ns(odd);
  if (rounds) start_ns = plus(start_ns, times(rounds, costs.predict_ns(queue.cap_rows)));
  // no sum of rows overflows: a queue would need 2**31 waiting tickets of 2**32 rows each
  int64_t own = std::min(queue.cap_rows, rest + lane->rows - rows_before + rows);
  return {plus(start_ns, costs.predict_ns(own)), own};
}

}  // namespace podium
