#include "plane.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <utility>

namespace podium {
namespace {

// How long a thread waits at most for the one whose batch comes next (plane.py, _HAND_OVER_S).
constexpr int64_t hand_over_ns = 2 * ns_per_ms;
// Deadlines are looked at this often at most.
constexpr int64_t min_timer_ns = ns_per_ms;
// Once nothing was delivered for this long, what is delivered next is believed at once (costs.py, TRIAL_AFTER_NS).
constexpr int64_t believe_after_ns = ns_per_s;

bool later(const std::pair<int64_t, Ref<Ticket>>& one, const std::pair<int64_t, Ref<Ticket>>& other) {
  return one.first > other.first;
}

}  // namespace

Plane::Plane(uint64_t max_requests, uint64_t max_bytes, bool density)
    : limit_(max_requests, max_bytes), density_(density), routes_(std::make_shared<const Routes>()) {
  timer_ = std::thread([this] { expire_forever(); });
}

Plane::~Plane() { stop(); }

Plane::Device& Plane::device(const std::string& name, int slots) {
  std::unique_ptr<Device>& found = devices_[name];
  if (!found) found = std::make_unique<Device>(&delivery_, slots, density_);
  return *found;
}

Plane::Device* Plane::device_of(uint64_t queue_id) {
  auto found = by_queue_.find(queue_id);
  return found == by_queue_.end() ? nullptr : found->second;
}

void Plane::wait(Lock& lock, std::condition_variable& changed, int64_t until_ns) {
  if (until_ns >= no_deadline_ns) {
    changed.wait(lock);
  } else {
    changed.wait_until(lock, std::chrono::steady_clock::time_point(std::chrono::nanoseconds(until_ns)));
  }
}

std::pair<int, int> Plane::threads_for(const std::string& name, int slots, int instances) {
  Lock lock(mutex_);
  Device& its = device(name, slots);
  int have = its.threads, need = its.plan.threads_with(instances);
  its.threads = std::max(have, need);
  return {have, need};
}

void Plane::open(const std::string& name, const Rules& rules, uint64_t entrance) {
  Lock lock(mutex_);
  Device& its = device(name, 1);
  entrances_[entrance].add(its.plan, *its.plan.add_queue(rules));
  entrance_of_[rules.queue_id] = entrance;
  by_queue_[rules.queue_id] = &its;
  running_[rules.queue_id] = 0;
}

void Plane::close(uint64_t queue_id, bool move) {
  Late expired = late(Ended::expired);
  {
    Lock lock(mutex_);
    Device* its = device_of(queue_id);
    if (!its) return;
    Queue& queue = *its->plan.queue(queue_id);
    queue.closed = true;
    if (move) {
      for (Ref<Ticket>& ticket : entrances_.at(entrance_of_.at(queue_id)).move(queue, now_ns())) {
        end_late(std::move(ticket), expired);
      }
      idle_.notify_all();
      for (auto& [name, each] : devices_) {
        if (each->sleeping && each->plan.waiting()) each->changed.notify_one();
      }
    }
  }
  tell(expired);
}

bool Plane::wait_idle(uint64_t queue_id, double timeout_s) {
  Lock lock(mutex_);
  Device* its = device_of(queue_id);
  if (!its) return true;
  auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(std::min(timeout_s, 1e6));
  // looked up each time: another thread may wait for the same, and be the one to forget it
  auto idle = [&] {
    auto running = running_.find(queue_id);
    return running == running_.end() || (!running->second && !its->plan.queue(queue_id)->open);
  };
  if (!idle_.wait_until(lock, until, idle)) return false;
  if (!device_of(queue_id)) return true;
  auto entrance = entrances_.find(entrance_of_.at(queue_id));
  entrance->second.remove(*its->plan.queue(queue_id));
  if (entrance->second.empty()) entrances_.erase(entrance);
  entrance_of_.erase(queue_id);
  its->plan.remove_queue(queue_id);
  by_queue_.erase(queue_id);
  running_.erase(queue_id);
  return true;
}

std::optional<QueueCounts> Plane::snapshot(uint64_t queue_id) {
  Lock lock(mutex_);
  Device* its = device_of(queue_id);
  if (!its) return std::nullopt;
  Queue* queue = its->plan.queue(queue_id);
  return QueueCounts{static_cast<size_t>(queue->waiting), queue->waiting_rows(), static_cast<size_t>(queue->open)};
}

// -- the doors' side ---------------------------------------------------------------------------------------------------

Entered Plane::enter(const Ref<Ticket>& ticket, int64_t now) {
  if (stopped_) return {Outcome::stopped};
  auto entrance = entrances_.find(ticket->queue_id);
  const Queue* first = entrance == entrances_.end() ? nullptr : entrance->second.first_open();
  if (!first) return {Outcome::closed};
  ticket->queue_id = first->rules.queue_id;  // what is refused by the limit is counted there
  switch (limit_.enter(ticket->nbytes)) {
    case Entry::entered:
      break;
    case Entry::too_many_requests:
      return {Outcome::too_many_requests, 0, limit_.requests()};
    case Entry::too_many_bytes:
      return {Outcome::too_many_bytes, 0, limit_.bytes()};
  }
  Admitted admitted;
  try {
    admitted = entrance->second.admit(ticket, now);
  } catch (...) {
    limit_.leave(ticket->nbytes);
    throw;
  }
  if (admitted.outcome != Admission::admitted) {
    limit_.leave(ticket->nbytes);
    switch (admitted.outcome) {
      case Admission::queue_full:
        return {Outcome::queue_full, admitted.ns};
      case Admission::passed:
        return {Outcome::passed};
      default:
        return {Outcome::predicted, admitted.ns};
    }
  }
  if (ticket->deadline_ns < no_deadline_ns) watch(ticket);
  return {Outcome::admitted};
}

Entered Plane::submit(const Ref<Ticket>& ticket, bool wake) {
  Lock lock(mutex_);
  Entered entered = enter(ticket, now_ns());
  if (wake && entered.outcome == Outcome::admitted) {
    Device* its = device_of(ticket->queue_id);
    if (its->sleeping) its->changed.notify_one();
  }
  return entered;
}

void Plane::submit_all(const std::vector<Ref<NativeTicket>>& tickets, const std::vector<std::string>& consumers,
                       std::vector<Entered>& outcomes) {
  outcomes.assign(tickets.size(), Entered{Outcome::admitted});
  Lock lock(mutex_);
  int64_t now = now_ns();
  for (size_t index = 0; index < tickets.size(); ++index) {
    const Ref<NativeTicket>& ticket = tickets[index];
    if (ticket->state == State::ended) continue;  // its caller left within the round
    if (ticket->turned_away && *ticket->turned_away) {
      outcomes[index] = {Outcome::closed};  // none of a stream's messages overtakes another
      continue;
    }
    Entered entered = outcomes[index] = enter(Ref<Ticket>(*ticket), now);
    switch (entered.outcome) {
      case Outcome::queue_full:
      case Outcome::too_many_requests:
      case Outcome::too_many_bytes:
        refusals_[ticket->queue_id].queue_full++;
        break;
      case Outcome::passed:
      case Outcome::predicted:
        refusals_[ticket->queue_id].expired++;
        break;
      default:
        break;
    }
    if (entered.outcome == Outcome::closed || entered.outcome == Outcome::stopped) {
      if (ticket->turned_away) *ticket->turned_away = true;
      continue;
    }
    count_use(ticket->queue_id, consumers[index]);
    traffic_.fast += ticket->place < 0;
    traffic_.tensor_bytes_in += ticket->nbytes;
    traffic_.received += ticket->request.message.copied();
  }
  for (auto& [name, its] : devices_) {
    if (its->sleeping && its->plan.waiting()) its->changed.notify_one();
  }
}

std::pair<State, Refused> Plane::cancel(Ticket& ticket) {
  Lock lock(mutex_);
  State before = ticket.state;
  if (before == State::waiting && !ticket.lane) {
    ticket.state = State::ended;  // it was not admitted
    return {before, Refused::no};
  }
  if (before == State::waiting) {
    if (Device* its = device_of(ticket.queue_id)) its->plan.withdraw(ticket);
    if (ticket.native) refusals_[ticket.queue_id].cancelled++;
  }
  if (before != State::ended) end(ticket);
  return {before, ticket.refused};
}

void Plane::wake() {
  Lock lock(mutex_);
  for (auto& [name, its] : devices_) {
    if (its->sleeping) its->changed.notify_one();
  }
}

void Plane::observe_delivery(int64_t took_ns) {
  Lock lock(mutex_);
  int64_t now = now_ns();
  if (now - delivered_ns_ >= believe_after_ns) delivery_.at_most(Estimate(took_ns));
  delivery_.observe(took_ns);
  delivered_ns_ = now;
}

// -- the engine's side -------------------------------------------------------------------------------------------------

std::unique_ptr<Taken> Plane::take(const std::string& name) {
  while (true) {
    Late late = this->late(Ended::expired);
    std::unique_ptr<Taken> taken;
    {
      Lock lock(mutex_);
      Device& its = device(name, 1);
      int64_t now = now_ns();
      if (stopped_) return nullptr;
      Decision decision = its.plan.decide(now);
      for (Ref<Ticket>& ticket : decision.late) end_late(std::move(ticket), late);
      if (decision.release) {
        Release& release = *decision.release;
        for (Ref<Ticket>& ticket : release.tickets) {
          ticket->state = State::taken;
          ticket->staged = release.staged;
        }
        taken = std::make_unique<Taken>(Taken{release.queue->rules.queue_id, release.token, name, std::move(release.tickets),
                                              release.rows, release.reason, release.staged, now});
        if (taken->staged) its.staged[taken->token] = taken->tickets;
        taken->size_class = taken->tickets.front()->size_class;
        running_[taken->queue_id]++;
        // another executor may be free, or time to stage the next batch
        if (its.plan.waiting() && its.sleeping) its.changed.notify_one();
      } else if (late.entries.empty()) {
        its.sleeping++;
        wait(lock, its.changed, decision.wait_until_ns);
        its.sleeping--;
      }
    }
    tell(late);
    if (taken) return taken;
  }
}

int64_t Plane::enter_device(Taken& taken) {
  int64_t gather_ns = now_ns() - taken.taken_ns;
  Lock lock(mutex_);
  Device& its = *devices_.at(taken.device);
  if (taken.staged) {
    // even when the plane stops: what runs before it ends, and this one has been taken
    its.begins.wait(lock, [&] { return its.plan.may_begin(taken.token); });
    int64_t now = now_ns();
    its.plan.begin(taken.token, now, gather_ns);
    for (Ref<Ticket>& ticket : taken.tickets) ticket->staged = false;
    its.staged.erase(taken.token);
    // until now its requests waited for the device, as those do that were not taken yet
    taken.taken_ns = now - gather_ns;
    // the place behind this batch is free
    if (its.plan.waiting() && its.sleeping) its.changed.notify_one();
  }
  its.plan.enter(taken.token);
  its.begins.notify_all();
  return taken.taken_ns;
}

void Plane::leave(Device& its, const Taken& taken) {
  its.plan.executed(taken.token, now_ns());
  its.staged.erase(taken.token);
  its.begins.notify_all();
  if (its.sleeping) its.changed.notify_one();
}

void Plane::leave_device(const Taken& taken) {
  Lock lock(mutex_);
  Device& its = *devices_.at(taken.device);
  leave(its, taken);
  // the thread of the next batch needs the interpreter, which this one would keep while it deals out answers
  bool takers = its.sleeping > 0;
  auto until = std::chrono::steady_clock::now() + std::chrono::nanoseconds(hand_over_ns);
  its.begins.wait_until(lock, until, [&] { return !its.plan.stands_still(takers); });
}

// -- under the lock, or on the timer's thread --------------------------------------------------------------------------

void Plane::end(Ticket& ticket) {
  ticket.state = State::ended;
  limit_.leave(ticket.nbytes);
  Device* its = device_of(ticket.queue_id);
  if (!its) return;
  Queue* queue = its->plan.queue(ticket.queue_id);
  queue->open--;
  queue->open_rows -= ticket.rows;
  if (queue->closed && !queue->open) idle_.notify_all();
}

void Plane::watch(const Ref<Ticket>& ticket) {
  deadlines_.emplace_back(ticket->deadline_ns, ticket);
  std::push_heap(deadlines_.begin(), deadlines_.end(), later);
  if (deadlines_.front().second.get() == ticket.get()) timer_changed_.notify_one();
  if (deadlines_.size() > 1000 + 4 * limit_.requests()) {
    // ended tickets leave the heap when their deadline comes; far deadlines must not pile up until then
    auto gone = std::remove_if(deadlines_.begin(), deadlines_.end(), [&](auto& entry) { return !is_watched(*entry.second); });
    deadlines_.erase(gone, deadlines_.end());
    std::make_heap(deadlines_.begin(), deadlines_.end(), later);
  }
}

bool Plane::may_expire(const Ticket& ticket) const {
  // one that is staged has yet to reach the device: what runs before it may overrun for long
  return ticket.state == State::waiting || (ticket.state == State::taken && ticket.staged);
}

bool Plane::is_watched(const Ticket& ticket) const {
  if (may_expire(ticket)) return true;
  return ticket.state == State::taken && ticket.native &&
         static_cast<const NativeTicket&>(ticket).call_deadline_ns < no_deadline_ns;
}

void Plane::expire_forever() {
  while (true) {
    Late expired = late(Ended::expired);
    {
      Lock lock(mutex_);
      if (stopped_) return;
      int64_t now = now_ns();
      while (!deadlines_.empty() && deadlines_.front().first <= now) {
        std::pop_heap(deadlines_.begin(), deadlines_.end(), later);
        Ref<Ticket> ticket = std::move(deadlines_.back().second);
        deadlines_.pop_back();
        if (!is_watched(*ticket)) continue;
        if (!may_expire(*ticket) && static_cast<NativeTicket&>(*ticket).call_deadline_ns > now) {
          // its model's own timeout is over, which counts no longer; its call's deadline is not
          deadlines_.emplace_back(static_cast<NativeTicket&>(*ticket).call_deadline_ns, std::move(ticket));
          std::push_heap(deadlines_.begin(), deadlines_.end(), later);
          continue;
        }
        if (ticket->state == State::waiting) device_of(ticket->queue_id)->plan.withdraw(*ticket);
        end_late(std::move(ticket), expired);
      }
      if (expired.entries.empty()) {
        int64_t until = deadlines_.empty() ? no_deadline_ns : std::max(deadlines_.front().first, now + min_timer_ns);
        wait(lock, timer_changed_, until);
      }
    }
    tell(expired);
  }
}

Plane::Late Plane::late(Ended why) const {
  return {{}, why, why == Ended::expired ? endings_.passed() : endings_.server_stops()};
}

void Plane::end_late(Ref<Ticket> ticket, Late& late) {
  Late::Entry entry{ticket, Ref<Stream>(), ticket->state == State::taken, ticket->state == State::taken && !ticket->staged, {}};
  if (ticket->native) {
    NativeTicket& native = static_cast<NativeTicket&>(*ticket);
    entry.stream = std::move(native.stream);
    if (native.place >= 0) {
      entry.answer = error_of(native, late.ending.text);
    }
    // one that is being executed is counted with its batch
    if (late.why == Ended::expired && !entry.executing) refusals_[ticket->queue_id].expired++;
    // one that is staged is counted with its batch
    if (late.why == Ended::failed && !entry.in_batch) refusals_[ticket->queue_id].not_ready++;
  }
  ticket->refused = refused_as(late.why);
  end(*ticket);
  late.entries.push_back(std::move(entry));
}

}  // namespace podium
