// ModelStreamInfer in the fast lane: plain messages of a stream become tickets, and their answers leave in the messages' order.
//
// The rules are those of server/transport/streams.py. At the first message that is not plain a stream is handed over to Python,
// once all that came before it is answered, and stays there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_set>
#include <vector>

#include "calls.h"
#include "http2.h"
#include "plane.h"
#include "rounds.h"

namespace podium {

// Of each stream: requests that may be open at once, and bytes of answers that may wait. Beyond either it is not read from.
struct StreamLimits {
  size_t max_requests = 1000;
  size_t max_bytes = size_t{64} << 20;
};

class StreamLane;

// All streams that the fast lane answers. Ownership: a stream is its loop's thread's, and so are these calls.
class StreamLanes {
 public:
  // `plane`, `calls` and `rounds` must outlive it. `slow` stands on the streams that Python answers.
  StreamLanes(Plane& plane, Calls& calls, Rounds& rounds, const Ref<Counted>& slow, int io_threads, const StreamLimits& limits);

  static bool is_path(const std::string& path);
  // False where Python answers the whole stream.
  bool begin(Stream& stream);

  // Of a stream that has begun here.
  void message(Stream& stream, Rope&& message);
  void half_closed(Stream& stream);
  void writable(Stream& stream);
  void answered(Stream& stream, int64_t place, Bytes&& answer);
  // It was not admitted.
  void refused(NativeTicket& ticket, const Entered& entered);
  // Nothing can be sent any more: what is open is cancelled. `lane` was the stream's.
  void gone(Stream& stream, const Ref<Counted>& lane);

  // Nothing more is read from any stream of this loop; each ends once what was read is answered.
  void leaving(Loop& loop);

 private:
  struct OnLoop {
    std::unordered_set<Stream*> open;
    bool leaving = false;
  };

  static StreamLane* lane_of(const Stream& stream);
  OnLoop& on_loop(Stream& stream) { return loops_[static_cast<size_t>(stream.loop().index())]; }
  void advance(Stream& stream);
  void send(Stream& stream, StreamLane& lane);
  void take_in(Stream& stream, StreamLane& lane);
  bool enter(Stream& stream, StreamLane& lane);
  void turn_back(StreamLane& lane, size_t index);
  void hand_over(Stream& stream, StreamLane& lane);
  void finish(Stream& stream, const Ending& ending);

  Plane& plane_;
  Calls& calls_;
  Rounds& rounds_;
  const Ref<Counted> slow_;
  const StreamLimits limits_;
  std::vector<OnLoop> loops_;
};

}  // namespace podium
