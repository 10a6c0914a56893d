#include "connection_door.h"

#include <cstring>
#include <string>
#include <utility>

#include "require.h"

namespace podium {

namespace {

size_t calls_alive = 0;

}  // namespace

struct FuzzDoor::Call final : Counted {
  Call() { ++calls_alive; }
  ~Call() override { --calls_alive; }
  Bytes pending;
  bool half_closed = false;
  bool ended = false;  // finished by the door, or gone
};

size_t FuzzDoor::alive() { return calls_alive; }

Bytes framed(const Rope& message) {
  constexpr size_t prefix_bytes = 5;
  Bytes made(prefix_bytes + message.size());
  made.data[0] = 0;
  for (size_t at = 0; at < 4; ++at) made.data[1 + at] = static_cast<uint8_t>(message.size() >> (24 - 8 * at) & 0xff);
  message.copy(0, message.size(), made.data.get() + prefix_bytes);
  return made;
}

FuzzDoor::Call& FuzzDoor::call(Stream& stream) {
  require(static_cast<bool>(stream.lane), "the door is told of a call that has begun, and not ended");
  auto& found = static_cast<Call&>(*stream.lane);
  require(!found.ended, "nothing is told of a call that has ended");
  return found;
}

void FuzzDoor::finish(Stream& stream, Code code, std::string_view text, const Metadata& trailing) {
  auto& found = static_cast<Call&>(*stream.lane);
  require(stream.open() == !found.ended, "a call that is not over is open");
  if (!std::exchange(found.ended, true)) --open_;
  stream.finish(code, text, trailing);
  require(!stream.open(), "a call that is finished is not open");
}

void FuzzDoor::started(Stream& stream) {
  require(!stream.lane, "a call begins once");
  require(stream.open(), "a call that begins is open");
  stream.lane = Ref<Counted>::take(new Call);
  ++open_;
  stream.watch_deadline();
  const std::string& path = stream.path;
  if (path == "/early") return finish(stream, Code::aborted, "100 % \n\xff", {{"x", "y"}, {"z-bin", std::string("\0\xff", 2)}});
  if (path == "/begin") return stream.begin(stream.metadata);
  if (path == "/flood") {
    // more than a small socket takes and little of everything allows; of hundreds of such calls, only the first
    for (int count = floods_++ < 8 ? 5 : 1; count; --count) {
      Ref<Slab> slab = Slab::make(8 << 10);
      std::memset(slab->data(), count, slab->capacity());
      Rope large;
      large.append(slab, slab->data(), slab->capacity());
      stream.send(framed(large));
    }
    return;
  }
  for (const char* known : {"/unary", "/stream", "/late", "/fail", "/pause", "/silent"}) {
    if (path == known) return;
  }
  finish(stream, Code::unimplemented, "Method not found!", {});
}

void FuzzDoor::message(Stream& stream, Rope&& message) {
  Call& found = call(stream);
  require(!found.half_closed, "no message follows the half-close");
  Bytes same = framed(message);  // reads every byte of it
  if (stream.path == "/fail") {
    std::string text(reinterpret_cast<const char*>(same.data.get()) + 5, message.size());
    return finish(stream, static_cast<Code>(text.size() % 19), text, stream.metadata);
  }
  if (stream.path == "/pause") {
    stream.read(false);
    paused_.emplace_back(stream);
  }
  if (stream.path == "/stream" || stream.path == "/pause" || stream.path == "/begin") {
    stream.send(std::move(same));
  } else {
    found.pending = std::move(same);
  }
}

void FuzzDoor::half_closed(Stream& stream) {
  Call& found = call(stream);
  require(!std::exchange(found.half_closed, true), "one half-close");
  if (stream.path == "/silent" || stream.path == "/flood") return;
  if (stream.path == "/late") {
    // its ending is the door's from here on, as with an engine that works
    Command first, last;
    first.stream = last.stream = Ref<Stream>(stream);
    first.message = std::move(found.pending);
    first.ends = false;
    last.code = Code::ok;
    last.trailing = stream.metadata;
    late_.push_back(std::move(first));
    late_.push_back(std::move(last));
    return;
  }
  if (found.pending.size) stream.send(std::move(found.pending));
  finish(stream, Code::ok, "", {});
}

void FuzzDoor::gone(Stream& stream) {
  Call& found = call(stream);
  require(!stream.open(), "a call that is gone is not open");
  found.ended = true;
  --open_;
}

void FuzzDoor::writable(Stream& stream) {
  call(stream);
  require(!stream.unsent_bytes(), "what is writable has nothing unsent");
  if (stream.path == "/flood") finish(stream, Code::data_loss, "enough", {});
}

void FuzzDoor::round_ended(Loop&) {}

void FuzzDoor::answer_late(Loop& loop) {
  if (!late_.empty()) {
    std::vector<Ref<Stream>> answered;
    for (const Command& command : late_) {
      if (command.ends) answered.push_back(command.stream);
    }
    // posted before the answers, so done just before them: from then on nothing may be told of those calls
    loop.call([this, answered = std::move(answered)] {
      for (const Ref<Stream>& stream : answered) {
        auto& found = static_cast<Call&>(*stream->lane);
        if (!std::exchange(found.ended, true)) --open_;
      }
    });
    loop.post(std::exchange(late_, {}));
  }
  for (Ref<Stream>& stream : std::exchange(paused_, {})) stream->read(true);
  floods_ = 0;
}

}  // namespace podium
