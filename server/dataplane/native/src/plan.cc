// The plan's queues and running batches; plan_admit.cc says who may wait, plan_decide.cc what runs next.
#include "plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace podium {

Plan::Plan(Estimate* delivery, int slots, bool density) : delivery_(delivery), slots_(slots), density_(density) {}

int Plan::threads_with(int instances) const { return std::max(executors_, instances) + slots_ - 1; }

size_t Plan::waiting() const { return waiting_; }

int Plan::executors() const { return executors_; }

Estimate& Plan::staging() { return staging_; }

Queue* Plan::add_queue(const Rules& rules) {
  if (queue(rules.queue_id)) throw std::invalid_argument("queue " + std::to_string(rules.queue_id) + " is open already");
  queues_.push_back(std::make_shared<Queue>(rules));
  Queue* made = queues_.back().get();
  by_id_[rules.queue_id] = made;
  count_executors();
  return made;
}

void Plan::remove_queue(uint64_t queue_id) {
  Queue* found = queue(queue_id);
  if (!found) throw std::out_of_range("no queue " + std::to_string(queue_id));
  if (found->waiting) throw std::invalid_argument("tickets wait in queue " + std::to_string(queue_id));
  by_id_.erase(queue_id);
  queues_.erase(std::find_if(queues_.begin(), queues_.end(), [&](const auto& one) { return one.get() == found; }));
  count_executors();
}

Queue* Plan::queue(uint64_t queue_id) {
  auto found = by_id_.find(queue_id);
  return found == by_id_.end() ? nullptr : found->second;
}

void Plan::count_executors() {
  executors_ = queues_.empty() ? 1 : queues_.front()->rules.instances;
  for (const auto& one : queues_) executors_ = std::max(executors_, one->rules.instances);
}

void Plan::withdraw(Ticket& ticket) {
  Lane* lane = ticket.lane;
  if (!lane) throw std::out_of_range("the ticket does not wait");
  int64_t rows = ticket.rows;
  Ref<Ticket> removed = lane->line.remove(lane->line.position(Key{ticket.due_ns, ticket.number, ticket.priority}));
  removed->lane = nullptr;
  left(*lane, 1, rows);
}

// Settles the counts of tickets that are no longer in their lane.
void Plan::left(Lane& lane, size_t tickets, int64_t rows) {
  lane.rows -= rows;
  lane.queue->waiting -= static_cast<int64_t>(tickets);
  waiting_ -= tickets;
  if (lane.line.empty()) lane.queue->forget(lane);
}

std::vector<Ref<Ticket>> Plan::all_waiting() const {
  std::vector<Ref<Ticket>> all;
  all.reserve(waiting_);
  for (const auto& one : queues_) {
    for (const Lane* lane = one->first_lane; lane; lane = lane->next) {
      for (const Waiter& waiter : lane->line) all.emplace_back(*waiter.ticket);
    }
  }
  return all;
}

const Plan::Running& Plan::running(uint64_t token) const {
  for (const Running& one : running_) {
    if (one.token == token) return one;
  }
  throw std::out_of_range("no batch " + std::to_string(token) + " runs");
}

Plan::Running& Plan::running(uint64_t token) { return const_cast<Running&>(static_cast<const Plan*>(this)->running(token)); }

int Plan::executing() const {
  auto executes = [](const Running& one) { return !one.staged; };
  return static_cast<int>(std::count_if(running_.begin(), running_.end(), executes));
}

bool Plan::may_begin(const Running& staged, int executing) const {
  int own = 0;
  for (const Running& one : running_) own += !one.staged && one.queue == staged.queue;
  return executing < executors_ && own < staged.queue->rules.instances;
}

bool Plan::may_begin(uint64_t token) const { return may_begin(running(token), executing()); }

int Plan::beginning(int executing) const {
  int count = 0;
  for (const Running& one : running_) count += one.staged && may_begin(one, executing);
  return count;
}

int Plan::beginning() const { return beginning(executing()); }

bool Plan::stands_still(bool takers) const {
  if (slots_ == 1) return false;
  int entered = 0;
  bool coming = beginning() > 0;
  for (const Running& one : running_) {
    entered += one.entered;
    coming = coming || (!one.staged && !one.entered);
  }
  return (coming || (takers && waiting_)) && entered < executors_;
}

void Plan::enter(uint64_t token) { running(token).entered = true; }

void Plan::begin(uint64_t token, int64_t now_ns, int64_t gather_ns) {
  Running& staged = running(token);
  staging_.observe(gather_ns);
  staged.staged = false;
  staged.begun_ns = now_ns;
}

void Plan::executed(uint64_t token, int64_t now_ns) {
  auto found = std::find_if(running_.begin(), running_.end(), [&](const Running& one) { return one.token == token; });
  if (found == running_.end()) return;
  // it may be the last to know a queue that was removed
  std::shared_ptr<Queue> queue = std::move(found->queue);
  int64_t took_ns = minus(now_ns, found->begun_ns);
  running_.erase(found);
  --queue->running;
  // one of several executors is a part of the device
  queue->share.use(floor_divide(took_ns, executors_), now_ns);
}

void Plan::observe(uint64_t queue_id, size_t size_class, int64_t rows, int64_t took_ns, int64_t features_ns, int64_t now_ns) {
  Queue* found = queue(queue_id);
  if (!found) throw std::out_of_range("no queue " + std::to_string(queue_id));
  CostModel& costs = found->costs.at(size_class);
  if (slots_ > 1) {
    // features of the next batch are found while one executes: what lies between two batches is the longer of both
    int64_t own_ns = minus(took_ns, features_ns);
    int64_t lead_ns = std::min(own_ns, features_ns);
    took_ns = std::max(own_ns, features_ns);
    if (costs.on_trial(rows, minus(now_ns, took_ns))) found->lead.at_most(Estimate(lead_ns));
    found->lead.observe(lead_ns);
  }
  costs.observe(rows, took_ns, now_ns);
}

}  // namespace podium
