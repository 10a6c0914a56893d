// The door behind a fuzzed connection: answers in every way there is, and sees to it that it is told what http2.h promises.
#pragma once

#include <string_view>
#include <vector>

#include "http2.h"

namespace podium {

// By path: "/unary" answers at half-close, "/stream" each message at once, "/late" as unary but by `Loop::post`, "/fail" with
// its message as text and the caller's metadata, "/early" before any message, "/begin" with headers at once, "/pause" reads no
// more until it is told to, "/flood" sends more than a socket takes, "/silent" never answers; all else is unimplemented.
class FuzzDoor final : public Door {
 public:
  void started(Stream& stream) override;
  void message(Stream& stream, Rope&& message) override;
  void half_closed(Stream& stream) override;
  void gone(Stream& stream) override;
  void writable(Stream& stream) override;
  void round_ended(Loop& loop) override;

  // Posts what "/late" calls are to be answered with, of which some are dead by now; calls that pause read again.
  void answer_late(Loop& loop);
  // How many calls it was told of whose end it does not know; and how many of their objects live.
  size_t open() const { return open_; }
  static size_t alive();

 private:
  struct Call;
  Call& call(Stream& stream);
  void finish(Stream& stream, Code code, std::string_view text, const Metadata& trailing);

  std::vector<Command> late_;
  std::vector<Ref<Stream>> paused_;
  size_t open_ = 0;
  size_t floods_ = 0;  // since late answers were last posted
};

// With gRPC's five bytes before it.
Bytes framed(const Rope& message);

}  // namespace podium
