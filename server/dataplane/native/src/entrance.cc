#include "entrance.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace podium {

const Queue* Entrance::first_open() const {
  for (const Seat& seat : seats_) {
    if (!seat.queue->closed) return seat.queue;
  }
  return nullptr;
}

void Entrance::add(Plan& plan, Queue& queue) {
  ranks_.reserve(seats_.size() + 1);
  seats_.push_back({&plan, &queue});
}

void Entrance::remove(const Queue& queue) {
  auto found = std::find_if(seats_.begin(), seats_.end(), [&](const Seat& seat) { return seat.queue == &queue; });
  if (found == seats_.end()) return;
  if (static_cast<size_t>(found - seats_.begin()) < turn_) --turn_;
  seats_.erase(found);
}

Admitted Entrance::admit(const Ref<Ticket>& ticket, int64_t now_ns) {
  rank(*ticket, now_ns);
  Admitted refusal{Admission::passed, 0};
  for (const Rank& one : ranks_) {
    const Seat& seat = seats_[one.seat];
    ticket->queue_id = seat.queue->rules.queue_id;
    Admitted said = seat.plan->admit(*seat.queue, Ref<Ticket>(ticket), now_ns);
    if (said.outcome == Admission::admitted) {
      turn_ = one.seat + 1;
      return said;
    }
    if (&one == &ranks_.front()) refusal = said;
  }
  if (!ranks_.empty()) ticket->queue_id = seats_[ranks_.front().seat].queue->rules.queue_id;
  return refusal;
}

std::vector<Ref<Ticket>> Entrance::move(Queue& queue, int64_t now_ns) {
  std::vector<Ref<Ticket>> late;
  auto own = std::find_if(seats_.begin(), seats_.end(), [&](const Seat& seat) { return seat.queue == &queue; });
  if (own == seats_.end() || !first_open()) return late;
  std::vector<std::pair<Key, Ref<Ticket>>> waiting;
  for (const Lane* lane = queue.first_lane; lane; lane = lane->next) {
    for (const Waiter& waiter : lane->line) waiting.emplace_back(waiter.key, *waiter.ticket);
  }
  std::sort(waiting.begin(), waiting.end(), [](const auto& one, const auto& other) { return one.first < other.first; });
  late.reserve(waiting.size());
  Plan& plan = *own->plan;
  for (auto& [key, ticket] : waiting) {
    plan.withdraw(*ticket);
    --queue.open;
    queue.open_rows -= ticket->rows;
    if (admit(ticket, now_ns).outcome == Admission::admitted) continue;
    ticket->queue_id = queue.rules.queue_id;
    if (plan.admit(queue, Ref<Ticket>(ticket), now_ns).outcome == Admission::admitted) continue;
    ++queue.open;
    queue.open_rows += ticket->rows;
    late.push_back(std::move(ticket));
  }
  return late;
}

// Open queues, the best first. Among equals it is the turn of the one after the last that was chosen.
void Entrance::rank(const Ticket& ticket, int64_t now_ns) {
  ranks_.clear();
  for (size_t offset = 0; offset < seats_.size(); ++offset) {
    size_t index = (turn_ + offset) % seats_.size();
    if (!seats_[index].queue->closed) ranks_.push_back({0, offset, index});
  }
  if (ranks_.size() < 2) return;
  bool known = true;
  for (Rank& one : ranks_) {
    const Seat& seat = seats_[one.seat];
    std::optional<int64_t> finish_ns = seat.plan->finish_ns(*seat.queue, ticket, now_ns);
    known = known && finish_ns;
    one.worth = finish_ns.value_or(0);
  }
  if (!known) {
    for (Rank& one : ranks_) one.worth = seats_[one.seat].queue->open_rows;
  }
  std::sort(ranks_.begin(), ranks_.end());
}

}  // namespace podium
