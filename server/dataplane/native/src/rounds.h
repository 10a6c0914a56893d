// What arrived at each loop since its last round: decoded as it comes, admitted all at once.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "plane.h"

namespace podium {

// How a request ends that was not admitted; none where Python must choose again, or say why nothing can be chosen.
std::optional<Ending> refusal(const Endings& endings, std::string_view id, const Entered& entered);

// Ownership: each loop's thread has a round of its own.
class Rounds {
 public:
  // `plane` must outlive it. `subjects`: callers have certificates, whose names count as their consumer's.
  Rounds(Plane& plane, int io_threads, bool subjects) : plane_(plane), subjects_(subjects), rounds_(io_threads) {}

  // Decodes a message for a fresh ticket of this stream. False where it is not plain; then it is unchanged.
  bool enter(Stream& stream, NativeTicket& ticket, Rope& message, int64_t arrival_ns);

  // Admits them. `refused(ticket, entered)` is called for each that was not, in order, and may enter others.
  template <typename Refused>
  void end(Loop& loop, const Refused& refused) {
    Two& round = rounds_[loop.index()];
    while (!round.filling.tickets.empty()) {
      std::swap(round.filling, round.ending);
      const Clearing clearing{round.ending};
      admit(round.ending);
      for (size_t index = 0; index < round.ending.tickets.size(); ++index) {
        NativeTicket& ticket = *round.ending.tickets[index];
        const Entered& entered = round.ending.outcomes[index];
        if (!ticket.submitted || entered.outcome == Outcome::admitted) continue;
        ticket.submitted = false;  // it is this thread's again
        refused(ticket, entered);
      }
    }
  }

 private:
  struct Round {
    std::vector<Ref<NativeTicket>> tickets;
    std::vector<std::string> consumers;
    std::vector<Entered> outcomes;
    std::shared_ptr<const Routes> routes;  // looked up once a round; a queue that has closed since says so
    void clear();
  };
  struct Two {
    Round filling, ending;
  };
  // Whatever happens, none of them is submitted twice.
  struct Clearing {
    Round& round;
    ~Clearing() { round.clear(); }
  };

  void admit(Round& round);

  Plane& plane_;
  const bool subjects_;
  std::vector<Two> rounds_;
};

}  // namespace podium
