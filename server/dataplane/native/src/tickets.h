// The two kinds of tickets: of requests that were decoded here, and of those that Python decoded.
#pragma once

#include <cstdint>

#include "http2.h"
#include "infer_request.h"
#include "ticket.h"

namespace podium {

// Its caller waits on a stream. Also the door's own place on that stream, from the first header on.
// Ownership: `request` is its loop's until submitted, then the plane's; nobody changes it while a batch may read it.
class NativeTicket final : public Ticket {
 public:
  NativeTicket() { native = true; }
  PlainRequest request;
  Ref<Stream> stream;
  int64_t call_deadline_ns = no_deadline_ns;  // of its call, after which nobody hears its answer, whatever is being executed
  bool submitted = false;                     // its loop's thread alone
  bool has_message = false;
  // Of a message of a stream: which one it is, and whether one before it was turned away, which is its loop's alone to look at.
  int64_t place = -1;
  bool* turned_away = nullptr;

  // Lets go of what the request holds: a ticket stays in the heap of deadlines until its own has passed.
  void forget() {
    request = PlainRequest();
    stream = Ref<Stream>();
  }
};

// Python knows the rest by its number.
class PythonTicket final : public Ticket {
 public:
  explicit PythonTicket(uint64_t its_number) : python_number(its_number) {}
  const uint64_t python_number;
};

}  // namespace podium
