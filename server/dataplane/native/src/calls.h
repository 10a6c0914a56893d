// The slow lane: calls that Python handlers answer, handed over as raw messages. Any RPC may come here, streaming or not.
//
// IO threads put events into one queue; Python's event loop watches `event_fd` and takes all of them at once, so that neither
// side ever waits for the other and no IO thread ever needs the interpreter.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "http2.h"

namespace podium {

// `gone`: nothing can be sent any more, its handler is to be cancelled.
enum class Event : uint8_t { started, message, half_closed, gone, writable };

// What of a call belongs to its connection, which may end first: copied while it is there.
struct CallFacts {
  std::string peer;
  Metadata auth;
  Loop* loop;
};

// `facts` of `started` alone.
struct CallEvent {
  Event kind;
  Ref<Stream> stream;
  Rope message;
  std::unique_ptr<CallFacts> facts;
};

class Calls {
 public:
  Calls();
  ~Calls();
  Calls(const Calls&) = delete;
  Calls& operator=(const Calls&) = delete;

  // Readable while events wait.
  int event_fd() const { return event_fd_; }

  // IO threads. A call begins with `started`, whoever looked at it before; its deadline is watched from then on. What comes
  // of a call that was never started, or has been forgotten, is dropped.
  void started(Stream& stream);
  void message(Stream& stream, Rope&& message);
  void half_closed(Stream& stream);
  void gone(Stream& stream);
  void writable(Stream& stream);

  // The stream's own loop: one event `writable` when everything that was sent is written; at once if it is so now.
  void want_writable(Stream& stream);

  // Python's thread: everything since the last time.
  std::vector<CallEvent> take();

  // Python's thread: a handler has taken a message of so many bytes. True: the stream was not read from, and shall be again.
  bool taken(const Stream& stream, size_t size);

  // Python's thread: nothing more is wanted of this call.
  void forget(const Stream& stream);

 private:
  // What waits of one call. Its caller is not read from beyond some of it: HTTP/2's own flow control holds it back.
  struct Waiting {
    size_t messages = 0;
    size_t bytes = 0;
    bool paused = false;
    bool wants_writable = false;
  };

  void put(CallEvent&& event);  // under the lock

  std::mutex mutex_;
  std::vector<CallEvent> events_;
  std::unordered_map<const Stream*, Waiting> open_;
  int event_fd_;
};

// The door of a server without a plane: Python answers every call.
class SlowDoor final : public Door {
 public:
  explicit SlowDoor(Calls& calls) : calls_(calls) {}
  void started(Stream& stream) override { calls_.started(stream); }
  void message(Stream& stream, Rope&& message) override { calls_.message(stream, std::move(message)); }
  void half_closed(Stream& stream) override { calls_.half_closed(stream); }
  void gone(Stream& stream) override { calls_.gone(stream); }
  void writable(Stream& stream) override { calls_.writable(stream); }
  void round_ended(Loop&) override {}

 private:
  Calls& calls_;
};

}  // namespace podium
