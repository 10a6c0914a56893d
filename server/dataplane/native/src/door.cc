#include "door.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "consumer.h"
#include "plane.h"

namespace podium {
namespace {

constexpr const char* infer_path = "/inference.GRPCInferenceService/ModelInfer";

// What stands on a stream that Python answers.
class Slow final : public Counted {};

int64_t deadline_of(const NativeTicket& ticket, const Route& route, int64_t transport_ns) {
  int64_t timeout_us = route.default_timeout_us;
  if (ticket.request.timeout_us && route.allow_timeout_override) timeout_us = ticket.request.timeout_us;
  int64_t own_ns = no_deadline_ns;
  // callers may name any number: what does not fit is no deadline
  if (timeout_us && (__builtin_mul_overflow(timeout_us, ns_per_us, &own_ns) ||
                     __builtin_add_overflow(own_ns, ticket.arrival_ns, &own_ns))) {
    own_ns = no_deadline_ns;
  }
  return std::min({own_ns, transport_ns, no_deadline_ns});
}

class PlaneDoor final : public Door {
 public:
  PlaneDoor(Plane& plane, Calls& calls, int io_threads, bool subjects)
      : plane_(plane), calls_(calls), subjects_(subjects), slow_(Ref<Counted>::take(new Slow)), rounds_(io_threads) {}

  void started(Stream& stream) override {
    if (plane_.fast() && stream.path == infer_path) {
      stream.lane = Ref<Counted>::take(new NativeTicket);
    } else {
      stream.lane = slow_;
      if (stream.path == infer_path) plane_.left_to_handlers();
      calls_.started(stream);
    }
  }

  void message(Stream& stream, Rope&& message) override {
    NativeTicket* ticket = fast(stream);
    if (ticket && !ticket->has_message) {
      ticket->has_message = true;
      ticket->request.message = std::move(message);
      return;
    }
    // a second message: Python's handler says what is wrong with that
    if (ticket) leave_to_python(stream, *ticket);
    calls_.message(stream, std::move(message));
  }

  void half_closed(Stream& stream) override {
    NativeTicket* ticket = fast(stream);
    if (ticket && enter(stream, *ticket)) return;
    if (ticket) leave_to_python(stream, *ticket);
    calls_.half_closed(stream);
  }

  void gone(Stream& stream) override {
    Ref<Counted> lane = std::move(stream.lane);
    if (lane.get() == slow_.get()) {
      calls_.gone(stream);
    } else if (lane) {
      NativeTicket& ticket = static_cast<NativeTicket&>(*lane);
      if (ticket.submitted) {
        // it may stay in the heap of deadlines until its own has passed: what it holds does not
        if (plane_.cancel(ticket).first == State::waiting) ticket.forget();
      } else {
        ticket.state = State::ended;  // it may stand in this round's list
      }
    }
  }

  void writable(Stream& stream) override {
    if (stream.lane.get() == slow_.get()) calls_.writable(stream);
  }

  void round_ended(Loop& loop) override {
    Round& round = rounds_[loop.index()];
    if (round.tickets.empty()) return;
    // whatever happens: none of them is submitted twice
    struct Ends {
      Round& round;
      ~Ends() {
        round.tickets.clear();
        round.consumers.clear();
        round.routes.reset();
      }
    } ends{round};
    for (Ref<NativeTicket>& ticket : round.tickets) ticket->submitted = ticket->state != State::ended;
    plane_.submit_all(round.tickets, round.consumers, round.outcomes);
    for (size_t index = 0; index < round.tickets.size(); ++index) {
      NativeTicket& ticket = *round.tickets[index];
      if (!ticket.submitted || round.outcomes[index].outcome == Outcome::admitted) continue;
      ticket.submitted = false;  // it is this thread's again
      refuse(ticket, round.outcomes[index]);
    }
  }

 private:
  // Those that arrived since the last round. Ownership: its loop.
  struct Round {
    std::vector<Ref<NativeTicket>> tickets;
    std::vector<std::string> consumers;
    std::vector<Entered> outcomes;
    std::shared_ptr<const Routes> routes;  // looked up once a round; a queue that has closed since says so
  };

  NativeTicket* fast(Stream& stream) const {
    return !stream.lane || stream.lane.get() == slow_.get() ? nullptr : static_cast<NativeTicket*>(stream.lane.get());
  }

  // False where Python must answer.
  bool enter(Stream& stream, NativeTicket& ticket) {
    if (!ticket.has_message) return false;
    Rope message = std::move(ticket.request.message);
    Round& round = rounds_[stream.loop().index()];
    if (!round.routes) round.routes = plane_.routes();
    if (!decode_plain(message, *round.routes, ticket.request)) {
      ticket.request.message = std::move(message);
      return false;
    }
    const Route& route = *ticket.request.route;
    ticket.queue_id = route.queue_id;
    ticket.rows = static_cast<uint32_t>(ticket.request.rows);
    ticket.shape = std::move(ticket.request.shape);
    ticket.nbytes = 0;
    for (size_t index = 0; index < ticket.request.inputs.size(); ++index) {
      if (ticket.request.mask >> index & 1) ticket.nbytes += ticket.request.inputs[index].size;
    }
    int64_t priority = ticket.request.priority;
    ticket.priority =
        static_cast<int32_t>(priority >= 1 && priority <= route.priority_levels ? priority : route.default_priority);
    ticket.id_hash = XXH64(ticket.request.id.data(), ticket.request.id.size(), 0);
    ticket.arrival_ns = stream.arrival_ns;
    ticket.set_deadline(stream.arrival_ns, deadline_of(ticket, route, stream.deadline_ns));
    ticket.call_deadline_ns = stream.deadline_ns;
    ticket.stream = Ref<Stream>(stream);
    // now: once it is admitted, the stream is no longer the ticket's to look at
    round.consumers.push_back(consumer_of(stream, subjects_));
    round.tickets.push_back(Ref<NativeTicket>(ticket));
    return true;
  }

  // A call that began here goes on there, as if it had just come.
  void leave_to_python(Stream& stream, NativeTicket& ticket) {
    bool has_message = ticket.has_message;
    Rope message = std::move(ticket.request.message);
    stream.lane = slow_;  // the ticket may be gone from here on
    plane_.left_to_handlers();
    calls_.started(stream);
    if (has_message) calls_.message(stream, std::move(message));
  }

  void refuse(NativeTicket& ticket, const Entered& entered) {
    Ref<Stream> stream = std::move(ticket.stream);
    const std::string& id = ticket.request.id;
    const Endings& endings = plane_.endings();
    Ending ending;
    switch (entered.outcome) {
      case Outcome::queue_full: ending = endings.queue_full(id, entered.ns); break;
      case Outcome::too_many_requests: ending = endings.too_many_requests(id, entered.count); break;
      case Outcome::too_many_bytes: ending = endings.too_many_bytes(id, entered.count); break;
      case Outcome::passed: ending = endings.passed(); break;
      case Outcome::predicted: ending = endings.predicted(entered.ns); break;
      default:
        // its version has just left service, or the server leaves: Python chooses again, or says so
        leave_to_python(*stream, ticket);
        calls_.half_closed(*stream);
        return;
    }
    stream->lane = Ref<Counted>();
    stream->finish(ending.code, ending.text, ending.trailing);
  }

  Plane& plane_;
  Calls& calls_;
  const bool subjects_;
  const Ref<Counted> slow_;
  std::vector<Round> rounds_;
};

}  // namespace

std::unique_ptr<Door> make_door(Plane& plane, Calls& calls, int io_threads, bool subjects) {
  return std::make_unique<PlaneDoor>(plane, calls, io_threads, subjects);
}

}  // namespace podium
