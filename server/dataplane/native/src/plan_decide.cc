// Decisions: which lane goes next, and what of it makes a batch.
#include <algorithm>

#include "plan.h"

namespace podium {

Decision Plan::decide(int64_t now_ns) {
  Decision decision;
  bool staged = false;
  if (must_wait_to_stage(now_ns, &staged, &decision.wait_until_ns)) return decision;
  while (true) {
    Choice choice = next_lane(now_ns, staged);
    if (!choice.lane) {
      decision.wait_until_ns = choice.wake_ns;
      return decision;
    }
    decision.release = fill(*choice.lane, now_ns, decision.late, staged);
    if (decision.release) return decision;
  }
}

// Whether every executor is taken and no batch may be staged yet; `staged` says whether the next one would be.
bool Plan::must_wait_to_stage(int64_t now_ns, bool* staged, int64_t* wait_until_ns) const {
  int running = executing();
  // a staged batch that may begin has its executor, though its thread may not have woken up yet
  *staged = running + beginning(running) >= executors_;
  if (!*staged) return false;
  if (!waiting_ || static_cast<int>(running_.size()) - running >= std::min(slots_ - 1, 1)) return true;
  // as late as it can be: what arrives until then rides along
  int64_t ends_ns = now_ns;
  bool none = true;
  for (const Running& one : running_) {
    if (one.staged) continue;
    ends_ns = none ? one.until_ns() : std::min(ends_ns, one.until_ns());
    none = false;
  }
  int64_t stage_ns = minus(ends_ns, staging_.predict_ns());
  if (now_ns >= stage_ns) return false;
  *wait_until_ns = stage_ns;
  return true;
}

// The lane that goes next, of those that need not wait; else when the first one will be ripe.
Plan::Choice Plan::next_lane(int64_t now_ns, bool staged) {
  Choice best{nullptr, no_deadline_ns};
  double best_place = 2.0;
  ripe_.clear();
  for (const auto& queue : queues_) {
    if (!queue->first_lane || queue->running >= queue->rules.instances + static_cast<int>(staged)) continue;
    double place = -queue->share.claim(now_ns);
    for (Lane* lane = queue->first_lane; lane; lane = lane->next) {
      int64_t ripe_ns = ripe_at_ns(*lane);
      if (ripe_ns > now_ns) {
        best.wake_ns = std::min(best.wake_ns, ripe_ns);
        continue;
      }
      if (density_) ripe_.push_back(lane);
      bool first = place < best_place || (place == best_place && lane->line.front().key < best.lane->line.front().key);
      if (!first) continue;
      best.lane = lane;
      best_place = place;
    }
  }
  if (!density_ || !best.lane || best_place < 0 || !overloaded(now_ns)) return best;
  int32_t level = best.lane->line.front().key.priority;
  double most = -1.0;
  for (Lane* lane : ripe_) {
    if (lane->line.front().key.priority != level) continue;
    double answers = density(*lane, now_ns);
    if (answers <= most) continue;
    best.lane = lane;
    most = answers;
  }
  return best;
}

// Whether what waits in the ripe lanes takes longer than the most patient of it can wait.
bool Plan::overloaded(int64_t now_ns) const {
  int64_t work_ns = 0;
  int64_t patient_ns = ripe_.front()->line.back().key.due_ns;
  for (const Lane* lane : ripe_) {
    work_ns = plus(work_ns, backlog_ns(*lane, lane->line.size()));
    patient_ns = std::max(patient_ns, lane->line.back().key.due_ns);
  }
  return plus(now_ns, floor_divide(work_ns, executors_)) > patient_ns;
}

// The next batch of a lane; or none, when tickets had to be dropped and another lane may now be more urgent.
std::unique_ptr<Release> Plan::fill(Lane& lane, int64_t now_ns, std::vector<Ref<Ticket>>& late, bool staged) {
  Queue& queue = *lane.queue;
  const Line& line = lane.line;
  Prefix batch = queue.rules.decoupled ? Prefix{1, line.front().ticket->rows} : prefix(lane, queue.cap_rows);
  bool predictive = queue.rules.early_drop && !lane.costs->on_trial(batch.rows, now_ns);
  int64_t took_ns = lane.costs->predict_ns(batch.rows), lead_ns = queue.lead.predict_ns();
  int64_t finish_ns = now_ns;
  if (predictive) {
    int64_t start_ns = std::max(free_at_ns(now_ns).front(), plus(now_ns, lead_ns));
    finish_ns = plus(plus(start_ns, took_ns), delivery_->predict_ns());
  }
  if (drop_late(lane, batch, finish_ns, now_ns, late)) return nullptr;
  auto release = std::make_unique<Release>();
  release->queue = &queue;
  release->rows = batch.rows;
  release->token = ++tokens_;
  release->staged = staged;
  if (batch.rows >= queue.cap_rows) {
    release->reason = Reason::full;
  } else if (batch.count < line.size()) {
    release->reason = Reason::too_large;
  } else {
    release->reason = queue.rules.queue_delay_ns ? Reason::delay : Reason::drained;
  }
  release->tickets.reserve(batch.count);
  for (size_t taken = 0; taken < batch.count; ++taken) {
    release->tickets.push_back(lane.line.remove_front());
    release->tickets.back()->lane = nullptr;
  }
  left(lane, batch.count, batch.rows);
  ++queue.running;
  auto own = std::find_if(queues_.begin(), queues_.end(), [&](const auto& one) { return one.get() == &queue; });
  running_.push_back(Running{release->token, *own, staged ? took_ns : plus(lead_ns, took_ns), now_ns, staged, false});
  return release;
}

// Takes out of a batch what would be late in it. Returns whether there was any.
bool Plan::drop_late(Lane& lane, const Prefix& batch, int64_t finish_ns, int64_t now_ns, std::vector<Ref<Ticket>>& late) {
  size_t gone = 0;
  int64_t gone_rows = 0;
  bool refused = false;
  for (size_t looked_at = 0; looked_at < batch.count; ++looked_at) {
    // those before it that were late have left already
    const Ticket& ticket = *lane.line[looked_at - gone].ticket;
    if (ticket.deadline_ns > finish_ns) continue;
    refused = refused || ticket.deadline_ns > now_ns;
    gone_rows += ticket.rows;
    late.push_back(lane.line.remove(looked_at - gone));
    late.back()->lane = nullptr;
    ++gone;
  }
  if (!gone) return false;
  if (refused) lane.costs->refused(batch.rows, now_ns);
  left(lane, gone, gone_rows);
  return true;
}

}  // namespace podium
