#include "rounds.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <utility>

#include "consumer.h"

namespace podium {
namespace {

int64_t deadline_of(const NativeTicket& ticket, const Route& route, int64_t transport_ns) {
  int64_t timeout_us = route.default_timeout_us;
  if (ticket.request.timeout_us && route.allow_timeout_override) timeout_us = ticket.request.timeout_us;
  int64_t own_ns = no_deadline_ns;
  // callers may name any number: what does not fit is no deadline
  if (timeout_us &&
      (__builtin_mul_overflow(timeout_us, ns_per_us, &own_ns) || __builtin_add_overflow(own_ns, ticket.arrival_ns, &own_ns))) {
    own_ns = no_deadline_ns;
  }
  return std::min({own_ns, transport_ns, no_deadline_ns});
}

}  // namespace

std::optional<Ending> refusal(const Endings& endings, std::string_view id, const Entered& entered) {
  switch (entered.outcome) {
    case Outcome::queue_full:
      return endings.queue_full(id, entered.ns);
    case Outcome::too_many_requests:
      return endings.too_many_requests(id, entered.count);
    case Outcome::too_many_bytes:
      return endings.too_many_bytes(id, entered.count);
    case Outcome::passed:
      return endings.passed();
    case Outcome::predicted:
      return endings.predicted(entered.ns);
    default:
      return std::nullopt;  // its version has just left service, or the server leaves
  }
}

bool Rounds::enter(Stream& stream, NativeTicket& ticket, Rope& message, int64_t arrival_ns) {
  Round& round = rounds_[stream.loop().index()].filling;
  if (!round.routes) round.routes = plane_.routes();
  if (!decode_plain(message, *round.routes, ticket.request)) return false;
  const Route& route = *ticket.request.route;
  ticket.queue_id = route.entrance;
  ticket.rows = static_cast<uint32_t>(ticket.request.rows);
  ticket.shape = std::move(ticket.request.shape);
  ticket.size_class = ticket.request.size_class;
  ticket.nbytes = 0;
  for (size_t index = 0; index < ticket.request.inputs.size(); ++index) {
    if (ticket.request.mask >> index & 1) ticket.nbytes += ticket.request.inputs[index].size;
  }
  int64_t priority = ticket.request.priority;
  ticket.priority =
      static_cast<int32_t>(priority >= 1 && priority <= route.priority_levels ? priority : route.default_priority);
  ticket.id_hash = XXH64(ticket.request.id.data(), ticket.request.id.size(), 0);
  ticket.arrival_ns = arrival_ns;
  ticket.set_deadline(arrival_ns, deadline_of(ticket, route, stream.deadline_ns));
  ticket.stream = Ref<Stream>(stream);
  // now: once it is admitted, the stream is no longer the ticket's to look at
  round.consumers.push_back(consumer_of(stream, subjects_));
  round.tickets.push_back(Ref<NativeTicket>(ticket));
  return true;
}

void Rounds::admit(Round& round) {
  for (Ref<NativeTicket>& ticket : round.tickets) ticket->submitted = ticket->state != State::ended;
  plane_.submit_all(round.tickets, round.consumers, round.outcomes);
}

void Rounds::Round::clear() {
  tickets.clear();
  consumers.clear();
  routes.reset();
}

}  // namespace podium
