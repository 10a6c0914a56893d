#include "calls.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

namespace podium {

namespace {

// A call that has so much waiting for its handler is not read from; with half of it, it is again. Enough that a stream of
// small messages is never held up between two turns of Python's loop, and little beside one large message.
constexpr size_t most_messages = 256;
constexpr size_t most_bytes = 1u << 20;

}  // namespace

Calls::Calls() : event_fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  if (event_fd_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
}

Calls::~Calls() { close(event_fd_); }

void Calls::put(CallEvent&& event) {
  events_.push_back(std::move(event));
  if (events_.size() > 1) return;
  uint64_t one = 1;
  // cannot fail: the counter is far below its end, as one write is answered by one read
  [[maybe_unused]] ssize_t written = write(event_fd_, &one, sizeof one);
}

void Calls::started(Stream& stream) {
  auto facts = std::make_unique<CallFacts>(CallFacts{stream.peer(), stream.auth(), &stream.loop()});
  {
    std::lock_guard<std::mutex> lock(mutex_);
    open_[&stream] = Waiting{};
    put(CallEvent{Event::started, Ref<Stream>(stream), Rope(), std::move(facts)});
  }
  if (stream.deadline_ns < no_deadline_ns) stream.watch_deadline();
}

void Calls::message(Stream& stream, Rope&& message) {
  bool pause = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = open_.find(&stream);
    if (found == open_.end()) return;
    Waiting& waiting = found->second;
    waiting.messages += 1;
    waiting.bytes += message.size();
    if (!waiting.paused && (waiting.messages >= most_messages || waiting.bytes >= most_bytes)) pause = waiting.paused = true;
    put(CallEvent{Event::message, Ref<Stream>(stream), std::move(message), nullptr});
  }
  if (pause) stream.read(false);
}

void Calls::half_closed(Stream& stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (open_.count(&stream)) put(CallEvent{Event::half_closed, Ref<Stream>(stream), Rope(), nullptr});
}

void Calls::gone(Stream& stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (open_.erase(&stream)) put(CallEvent{Event::gone, Ref<Stream>(stream), Rope(), nullptr});
}

void Calls::writable(Stream& stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = open_.find(&stream);
  if (found == open_.end() || !std::exchange(found->second.wants_writable, false)) return;
  put(CallEvent{Event::writable, Ref<Stream>(stream), Rope(), nullptr});
}

void Calls::want_writable(Stream& stream) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = open_.find(&stream);
    if (found == open_.end()) return;
    found->second.wants_writable = true;
  }
  if (!stream.unsent_bytes()) writable(stream);
}

std::vector<CallEvent> Calls::take() {
  uint64_t count;
  // before the queue is emptied: what is put afterwards finds it empty and writes again
  [[maybe_unused]] ssize_t got = read(event_fd_, &count, sizeof count);
  std::vector<CallEvent> taken;
  std::lock_guard<std::mutex> lock(mutex_);
  taken.swap(events_);
  return taken;
}

bool Calls::taken(const Stream& stream, size_t size) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = open_.find(&stream);
  if (found == open_.end()) return false;
  Waiting& waiting = found->second;
  waiting.messages -= 1;
  waiting.bytes -= size;
  if (!waiting.paused || waiting.messages > most_messages / 2 || waiting.bytes > most_bytes / 2) return false;
  waiting.paused = false;
  return true;
}

void Calls::forget(const Stream& stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  open_.erase(&stream);
}

}  // namespace podium
