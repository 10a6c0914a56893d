#include "door.h"

#include <utility>

#include "plane.h"
#include "rounds.h"

namespace podium {
namespace {

constexpr const char* infer_path = "/inference.GRPCInferenceService/ModelInfer";

// What stands on a stream that Python answers.
class Slow final : public Counted {};

// What stands on a stream: `slow_`, a NativeTicket (ModelInfer), a StreamLane (ModelStreamInfer), or nothing once it is answered.
class PlaneDoor final : public Door {
 public:
  PlaneDoor(Plane& plane, Calls& calls, int io_threads, bool subjects, const StreamLimits& limits)
      : plane_(plane),
        calls_(calls),
        slow_(Ref<Counted>::take(new Slow)),
        rounds_(plane, io_threads, subjects),
        streams_(plane, calls, rounds_, slow_, io_threads, limits) {}

  void started(Stream& stream) override {
    if (plane_.fast() && stream.path == infer_path) {
      stream.lane = Ref<Counted>::take(new NativeTicket);
    } else if (!StreamLanes::is_path(stream.path) || !streams_.begin(stream)) {
      stream.lane = slow_;
      if (stream.path == infer_path) plane_.left_to_handlers();
      calls_.started(stream);
    }
  }

  void message(Stream& stream, Rope&& message) override {
    if (streamed(stream)) return streams_.message(stream, std::move(message));
    NativeTicket* ticket = fast(stream);
    if (ticket && !ticket->has_message) {
      ticket->has_message = true;
      ticket->request.message = std::move(message);
      return;
    }
    // a second message: Python's handler says what is wrong with that
    if (ticket) leave_to_python(stream, *ticket, std::move(ticket->request.message));
    calls_.message(stream, std::move(message));
  }

  void half_closed(Stream& stream) override {
    if (streamed(stream)) return streams_.half_closed(stream);
    NativeTicket* ticket = fast(stream);
    if (ticket) {
      Rope message = std::move(ticket->request.message);
      ticket->call_deadline_ns = stream.deadline_ns;
      if (ticket->has_message && rounds_.enter(stream, *ticket, message, stream.arrival_ns)) return;
      leave_to_python(stream, *ticket, std::move(message));
    }
    calls_.half_closed(stream);
  }

  void gone(Stream& stream) override {
    bool streams = streamed(stream);
    Ref<Counted> lane = std::move(stream.lane);
    if (lane.get() == slow_.get()) {
      calls_.gone(stream);
    } else if (streams) {
      streams_.gone(stream, lane);
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
    if (stream.lane.get() == slow_.get()) {
      calls_.writable(stream);
    } else if (streamed(stream)) {
      streams_.writable(stream);
    }
  }

  void round_ended(Loop& loop) override {
    rounds_.end(loop, [this](NativeTicket& ticket, const Entered& entered) {
      if (ticket.place >= 0) {
        streams_.refused(ticket, entered);
      } else {
        refuse(ticket, entered);
      }
    });
  }

  void answered(Stream& stream, int64_t place, Bytes&& answer) override {
    // whoever left has no lane any more
    if (streamed(stream)) streams_.answered(stream, place, std::move(answer));
  }

  void leaving(Loop& loop) override { streams_.leaving(loop); }

 private:
  bool streamed(const Stream& stream) const {
    return stream.lane && stream.lane.get() != slow_.get() && StreamLanes::is_path(stream.path);
  }

  // Of a unary call.
  NativeTicket* fast(Stream& stream) const {
    return !stream.lane || stream.lane.get() == slow_.get() ? nullptr : static_cast<NativeTicket*>(stream.lane.get());
  }

  // A call that began here goes on there, as if it had just come.
  void leave_to_python(Stream& stream, NativeTicket& ticket, Rope message) {
    bool has_message = ticket.has_message;
    stream.lane = slow_;  // the ticket may be gone from here on
    plane_.left_to_handlers();
    calls_.started(stream);
    if (has_message) calls_.message(stream, std::move(message));
  }

  void refuse(NativeTicket& ticket, const Entered& entered) {
    Ref<Stream> stream = std::move(ticket.stream);
    if (std::optional<Ending> ending = refusal(plane_.endings(), ticket.request.id, entered)) {
      stream->lane = Ref<Counted>();
      stream->finish(ending->code, ending->text, ending->trailing);
      return;
    }
    leave_to_python(*stream, ticket, ticket.request.take_message());
    calls_.half_closed(*stream);
  }

  Plane& plane_;
  Calls& calls_;
  const Ref<Counted> slow_;
  Rounds rounds_;
  StreamLanes streams_;
};

}  // namespace

std::unique_ptr<Door> make_door(Plane& plane, Calls& calls, int io_threads, bool subjects, const StreamLimits& limits) {
  return std::make_unique<PlaneDoor>(plane, calls, io_threads, subjects, limits);
}

}  // namespace podium
