// The slow lane: calls that Python handlers answer, handed over as raw messages. Any RPC may come here, streaming or not.
//
// IO threads put events into one queue; Python's event loop watches `event_fd` and takes all of them at once, so that neither
// side ever waits for the other and no IO thread ever needs the interpreter.
#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include "http2.h"

namespace podium {

// `gone`: nothing can be sent any more, its handler is to be cancelled.
enum class Event : uint8_t { started, message, half_closed, gone, writable };

struct CallEvent {
  Event kind;
  Ref<Stream> stream;
  Rope message;
};

class Calls {
 public:
  Calls();
  ~Calls();
  int event_fd() const;

  // IO threads. A call begins with `started`, whoever looked at it before.
  void started(Stream& stream);
  void message(Stream& stream, Rope&& message);
  void half_closed(Stream& stream);
  void gone(Stream& stream);
  void writable(Stream& stream);

  // Python's thread: everything since the last time.
  std::vector<CallEvent> take();
};

}  // namespace podium
