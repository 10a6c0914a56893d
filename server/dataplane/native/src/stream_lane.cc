#include "stream_lane.h"

#include <deque>
#include <string>
#include <utility>

#include "infer_response.h"

namespace podium {
namespace {

constexpr std::string_view stream_path = "/inference.GRPCInferenceService/ModelStreamInfer";
// The call itself shall fail at the first error: Python's streams do that.
constexpr const char* fails_whole = "triton_grpc_error";
// So much may be on its way to a caller; what is ready beyond that waits here, and counts as open
// (server/transport/native/context.py, MOST_UNSENT_BYTES).
constexpr size_t most_unsent_bytes = 64 * 1024;

// A message that was let in. `ticket` until it is answered.
struct Asked {
  Ref<NativeTicket> ticket;
  Bytes answer;
};

}  // namespace

// What stands on a stream of the fast lane.
class StreamLane final : public Counted {
 public:
  std::deque<Asked> asked;  // in their order, from place `first` on
  int64_t first = 0;
  size_t answer_bytes = 0;
  std::deque<Rope> kept;  // arrived, and not looked at yet
  bool half_closed = false;
  bool leaves_lane = false;  // the first of `kept` is for Python
  bool leaving = false;      // the server wants nothing more
  bool reading = true;
  bool turned_away = false;

  bool full(const StreamLimits& limits) const {
    return asked.size() >= limits.max_requests || answer_bytes >= limits.max_bytes;
  }
};

StreamLanes::StreamLanes(Plane& plane, Calls& calls, Rounds& rounds, const Ref<Counted>& slow, int io_threads,
                         const StreamLimits& limits)
    : plane_(plane), calls_(calls), rounds_(rounds), slow_(slow), limits_(limits), loops_(static_cast<size_t>(io_threads)) {}

bool StreamLanes::is_path(const std::string& path) { return path == stream_path; }

StreamLane* StreamLanes::lane_of(const Stream& stream) { return static_cast<StreamLane*>(stream.lane.get()); }

bool StreamLanes::begin(Stream& stream) {
  OnLoop& its = on_loop(stream);
  if (its.leaving || !plane_.fast()) return false;
  for (const auto& [name, value] : stream.metadata) {
    if (name == fails_whole && value == "true") return false;
  }
  its.open.insert(&stream);
  stream.lane = Ref<Counted>::take(new StreamLane);
  // all of it has to be over then, whatever is being executed
  if (stream.deadline_ns < no_deadline_ns) stream.watch_deadline();
  return true;
}

void StreamLanes::message(Stream& stream, Rope&& message) {
  StreamLane& lane = *lane_of(stream);
  if (lane.leaving) return;
  lane.kept.push_back(std::move(message));
  if (!lane.leaves_lane) advance(stream);
}

void StreamLanes::half_closed(Stream& stream) {
  StreamLane& lane = *lane_of(stream);
  if (lane.leaving) return;
  lane.half_closed = true;
  advance(stream);
}

void StreamLanes::writable(Stream& stream) {
  StreamLane& lane = *lane_of(stream);
  if (lane.asked.empty() || lane.asked.front().ticket) return;
  // in a round of its own: what is sent or let in now might wait for the next event of any call
  stream.loop().call([this, held = Ref<Stream>(stream)] {
    if (held->lane && held->lane.get() != slow_.get()) advance(*held);
  });
}

void StreamLanes::answered(Stream& stream, int64_t place, Bytes&& answer) {
  StreamLane& lane = *lane_of(stream);
  Asked& its = lane.asked[static_cast<size_t>(place - lane.first)];
  lane.answer_bytes += answer.size;
  its.answer = std::move(answer);
  its.ticket = Ref<NativeTicket>();
  if (place == lane.first) advance(stream);
}

void StreamLanes::refused(NativeTicket& ticket, const Entered& entered) {
  Ref<Stream> stream = std::move(ticket.stream);
  if (!stream) return;  // turned back with one before it
  StreamLane& lane = *lane_of(*stream);
  const std::string& id = ticket.request.id;
  if (std::optional<Ending> ending = refusal(plane_.endings(), id, entered)) {
    // as in Triton it says which request, and no more
    answered(*stream, ticket.place, encode_error(ending->text, id, {}, {}));
    return;
  }
  turn_back(lane, static_cast<size_t>(ticket.place - lane.first));
  advance(*stream);
}

// From this one on nothing was admitted: all of it is for Python, as if it had not been looked at.
void StreamLanes::turn_back(StreamLane& lane, size_t index) {
  while (lane.asked.size() > index) {
    NativeTicket& ticket = *lane.asked.back().ticket;
    ticket.stream = Ref<Stream>();
    ticket.state = State::ended;  // one that came since stands in the next round
    lane.kept.push_front(ticket.request.take_message());
    lane.asked.pop_back();
  }
  lane.leaves_lane = true;
}

void StreamLanes::gone(Stream& stream, const Ref<Counted>& held) {
  on_loop(stream).open.erase(&stream);
  for (Asked& each : static_cast<StreamLane&>(*held).asked) {
    if (!each.ticket) continue;
    NativeTicket& ticket = *each.ticket;
    if (!ticket.submitted) {
      ticket.state = State::ended;  // it stands in this round's list
    } else if (plane_.cancel(ticket).first == State::waiting) {
      ticket.forget();
    }
  }
}

void StreamLanes::leaving(Loop& loop) {
  OnLoop& its = loops_[static_cast<size_t>(loop.index())];
  its.leaving = true;
  std::vector<Ref<Stream>> open;
  for (Stream* stream : its.open) open.emplace_back(*stream);
  for (Ref<Stream>& stream : open) {
    StreamLane& lane = *lane_of(*stream);
    // whoever has sent everything, and all of it was read, is answered well
    lane.half_closed = lane.half_closed && lane.kept.empty();
    lane.leaving = true;
    lane.leaves_lane = false;
    lane.kept.clear();
    advance(*stream);
  }
}

// Everything that can be done for a stream now. It may be Python's afterwards, or have ended.
void StreamLanes::advance(Stream& stream) {
  Ref<Counted> held = stream.lane;
  StreamLane& lane = static_cast<StreamLane&>(*held);
  send(stream, lane);
  take_in(stream, lane);
  if (lane.asked.empty()) {
    if (lane.leaves_lane) return hand_over(stream, lane);
    if (lane.half_closed && lane.kept.empty()) return finish(stream, Ending());
    // not well: messages may be on their way that nobody will read
    if (lane.leaving) return finish(stream, plane_.endings().server_leaves());
  }
  bool wanted = lane.kept.empty() && !lane.leaving && !lane.full(limits_);
  if (wanted != lane.reading) stream.read(lane.reading = wanted);
}

void StreamLanes::send(Stream& stream, StreamLane& lane) {
  while (!lane.asked.empty() && !lane.asked.front().ticket && stream.unsent_bytes() < most_unsent_bytes) {
    Bytes answer = std::move(lane.asked.front().answer);
    lane.asked.pop_front();
    lane.first += 1;
    lane.answer_bytes -= answer.size;
    stream.send(std::move(answer));
  }
}

void StreamLanes::take_in(Stream& stream, StreamLane& lane) {
  while (!lane.kept.empty() && !lane.leaves_lane && !lane.full(limits_)) {
    if (plane_.fast() && enter(stream, lane)) {
      lane.kept.pop_front();
    } else {
      lane.leaves_lane = true;
    }
  }
}

bool StreamLanes::enter(Stream& stream, StreamLane& lane) {
  Ref<NativeTicket> ticket = Ref<NativeTicket>::take(new NativeTicket);
  ticket->place = lane.first + static_cast<int64_t>(lane.asked.size());
  ticket->turned_away = &lane.turned_away;
  if (!rounds_.enter(stream, *ticket, lane.kept.front(), now_ns())) return false;
  lane.asked.push_back(Asked{std::move(ticket), Bytes()});
  return true;
}

// It goes on there, as if it had just come.
void StreamLanes::hand_over(Stream& stream, StreamLane& lane) {
  on_loop(stream).open.erase(&stream);
  stream.lane = slow_;
  calls_.started(stream);
  // first, for it may be more than is read ahead for a handler
  if (!lane.reading) stream.read(true);
  for (Rope& message : lane.kept) calls_.message(stream, std::move(message));
  if (lane.half_closed) calls_.half_closed(stream);
}

void StreamLanes::finish(Stream& stream, const Ending& ending) {
  on_loop(stream).open.erase(&stream);
  stream.lane = Ref<Counted>();
  stream.finish(ending.code, ending.text, ending.trailing);
}

}  // namespace podium
