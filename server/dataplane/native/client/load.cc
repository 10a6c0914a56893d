#include "load.h"

#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "clock.h"

namespace podium::client {

namespace {

constexpr size_t most_connecting = 64;  // more at once overflow a server's backlog, and a lost SYN costs a second
constexpr int64_t retry_after_ns = 50 * ns_per_ms;
constexpr int look_up_ms = 20;  // how long a wait may hide that the run is over

nghttp2_nv field(const char* name, const std::string& value) {
  const auto bytes = [](const char* text) { return reinterpret_cast<uint8_t*>(const_cast<char*>(text)); };
  return {bytes(name), bytes(value.c_str()), std::strlen(name), value.size(),
          NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE};
}

int64_t ns(double seconds) { return static_cast<int64_t>(seconds * static_cast<double>(ns_per_s)); }

}  // namespace

Load::Lane::Lane(const Target& target, const std::vector<nghttp2_nv>& fields, Load& load, int epoll, size_t count)
    : connection(target, fields, load, epoll, this), slots(count) {
  for (Slot& slot : slots) {
    slot.lane = this;
    idle.push_back(&slot);
  }
}

Load::Load(const Options& options, Payload& payload)
    : options_(options),
      payload_(payload),
      target_(options.target),
      timeout_(std::to_string(std::max<int64_t>(1, std::llround(options.deadline_ms))) + "m"),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      pacer_(options.rate_per_s > 0 ? options.rate_per_s : 1.0, options.seed, options.cv) {
  if (epoll_ < 0) throw std::runtime_error("no epoll");
  static const std::string post = "POST", scheme = "http", trailers = "trailers", type = "application/grpc",
                           agent = "podium-client";
  fields_ = {field(":method", post),       field(":scheme", scheme),
             field(":path", options.path), field(":authority", target_.authority()),
             field("te", trailers),        field("content-type", type),
             field("user-agent", agent)};
  if (options.deadline_ms > 0 && !options.timeout_parameter) fields_.push_back(field("grpc-timeout", timeout_));
  for (uint64_t count = 0; count < options.connections; ++count) {
    lanes_.push_back(std::make_unique<Lane>(target_, fields_, *this, epoll_, options.streams));
    closed_.push_back(lanes_.back().get());
  }
}

Load::~Load() {
  finish();
  ::close(epoll_);
}

Report Load::run() {
  connect_all();
  const double cpu_before_s = own_cpu_s();
  int64_t now = now_ns();
  progress_ns_ = last_answer_ns_ = now;
  report_.start_ns = settled_ns_ = now + ns(options_.settle_s);
  stop_ns_ = options_.seconds > 0 ? settled_ns_ + ns(options_.seconds) : no_deadline_ns;
  pacer_.start(now);
  issuing_ = true;
  for (auto& lane : lanes_) {
    if (lane->connection.established()) settle(*lane, true);
  }
  for (; !over(now); now = now_ns()) {
    open_closed(now);
    wait(now);
    if (options_.rate_per_s > 0) start_due();
  }
  report_.end_ns = std::max(last_answer_ns_, report_.start_ns);
  const bool timed = options_.rate_per_s > 0 && now >= stop_ns_;
  report_.offered_until_ns = timed ? stop_ns_ : report_.end_ns;
  report_.behind_ns = timed ? std::max<int64_t>(0, stop_ns_ - pacer_.due_ns()) : 0;
  finish();
  report_.cpu_s = own_cpu_s() - cpu_before_s;
  return report_;
}

void Load::connect_all() {
  const int64_t end_ns = now_ns() + ns(options_.stall_s);
  for (int64_t now = now_ns(); now < end_ns && (!closed_.empty() || connecting_ > 0); now = now_ns()) {
    open_closed(now);
    handle_events(look_up_ms);
  }
  if (report_.connects == 0) throw std::runtime_error("cannot connect to " + options_.target);
}

void Load::open_closed(int64_t now) {
  for (size_t place = 0; place < closed_.size() && connecting_ < most_connecting;) {
    Lane& lane = *closed_[place];
    if (lane.retry_ns > now) {
      ++place;
      continue;
    }
    if (!lane.connection.open()) {
      ++report_.failed_connects;
      lane.retry_ns = now + retry_after_ns;
      continue;
    }
    ++connecting_;
    lane.started = lane.answered = 0;
    closed_[place] = closed_.back();
    closed_.pop_back();
  }
}

void Load::wait(int64_t now) {
  if (options_.rate_per_s > 0 && issuing_ && !full_) {
    wait_until(epoll_, std::min({pacer_.due_ns(), stop_ns_, now + look_up_ms * ns_per_ms}));
    handle_events(0);
  } else {
    handle_events(look_up_ms);
  }
}

void Load::handle_events(int timeout_ms) {
  epoll_event events[256];
  const int count = epoll_wait(epoll_, events, 256, timeout_ms);
  for (int place = 0; place < count; ++place) {
    Lane& lane = *static_cast<Lane*>(static_cast<Connection*>(events[place].data.ptr)->place());
    const bool was = lane.connection.established();
    const bool alive = lane.connection.on_ready(events[place].events);
    if (!was && lane.connection.established()) {
      --connecting_;
      ++report_.connects;
      progress_ns_ = now_ns();
    } else if (!was && !alive) {
      --connecting_;
      ++report_.failed_connects;
    }
    full_ = false;
    settle(lane, alive);
  }
}

// After anything happened on a connection: new calls where there is room, bytes out, and another connection if it is over.
void Load::settle(Lane& lane, bool alive) {
  if (alive && lane.connection.established()) {
    refill(lane);
    alive = lane.connection.flush();
  }
  const uint64_t most = options_.requests_per_connection;
  const bool used_up = most > 0 && lane.answered >= most && lane.connection.open_calls() == 0;
  if (alive && !used_up) return;
  if (!alive && lane.connection.established() && !lane.connection.leaving()) ++report_.lost_connections;
  // one that answered nothing is not opened again at once: a server that hangs up would be called in a circle
  lane.retry_ns = lane.answered > 0 ? 0 : now_ns() + retry_after_ns;
  lane.connection.close();
  closed_.push_back(&lane);
}

bool Load::may_start(const Lane& lane) const {
  return !lane.idle.empty() && lane.connection.usable() &&
         (options_.requests_per_connection == 0 || lane.started < options_.requests_per_connection) &&
         (options_.requests == 0 || report_.sent < options_.requests);
}

void Load::start(Lane& lane, int64_t since_ns) {
  Slot& slot = *lane.idle.back();
  slot.number = report_.sent;
  slot.since_ns = since_ns;
  payload_.write(slot.number, slot.head, slot.tail);
  if (!lane.connection.submit(slot)) return;
  lane.idle.pop_back();
  ++lane.started;
  ++report_.sent;
  ++in_flight_;
}

void Load::refill(Lane& lane) {
  if (!issuing_ || options_.rate_per_s > 0 || !may_start(lane)) return;
  const int64_t now = now_ns();
  if (now >= stop_ns_) return;
  while (may_start(lane)) start(lane, now);
}

// Starts what is due, each request on the next connection that has room: without room it stays due, and its wait counts.
void Load::start_due() {
  const int64_t now = now_ns();
  while (issuing_ && pacer_.due_ns() <= std::min(now, stop_ns_)) {
    Lane* const lane = next_lane();
    if (!lane) break;
    const uint64_t before = report_.sent;
    start(*lane, pacer_.due_ns());
    if (!lane->dirty) dirty_.push_back(lane);
    lane->dirty = true;
    if (report_.sent == before) continue;
    if (pacer_.due_ns() >= settled_ns_) report_.lateness.record(now_ns() - pacer_.due_ns());
    pacer_.advance();
  }
  for (Lane* lane : dirty_) {
    lane->dirty = false;
    settle(*lane, lane->connection.flush());
  }
  dirty_.clear();
}

Load::Lane* Load::next_lane() {
  for (size_t tried = 0; !full_ && tried < lanes_.size(); ++tried) {
    cursor_ = (cursor_ + 1) % lanes_.size();
    if (may_start(*lanes_[cursor_])) return lanes_[cursor_].get();
  }
  full_ = true;
  return nullptr;
}

bool Load::over(int64_t now) {
  issuing_ = issuing_ && now < stop_ns_ && (options_.requests == 0 || report_.sent < options_.requests);
  if (!issuing_ && in_flight_ == 0) return true;
  if (in_flight_ == 0 && closed_.size() + connecting_ < lanes_.size()) progress_ns_ = now;
  return now - progress_ns_ > ns(options_.stall_s);
}

void Load::call_ended(Connection& connection, Call& call, Ending ending, uint32_t code) {
  auto& slot = static_cast<Slot&>(call);
  --in_flight_;
  slot.lane->idle.push_back(&slot);
  if (finishing_) {
    ++report_.unanswered;
    return;
  }
  progress_ns_ = last_answer_ns_ = connection.read_ns();
  full_ = false;
  if (ending == Ending::answered) ++slot.lane->answered;
  if (ending != Ending::answered && settling(slot)) {
    ++report_.settling;
    return;
  }
  switch (ending) {
    case Ending::answered:
      judge(slot, connection.read_ns() - slot.since_ns);
      break;
    case Ending::reset:
      ++report_.errors["reset:" + std::to_string(code)];
      break;
    case Ending::refused:
      ++report_.errors["refused"];
      break;
    case Ending::lost:
      ++report_.errors["lost"];
      break;
  }
}

// An open loop counts what was due after the load had settled; a closed one what was answered then, or it would miss at its
// beginning what it had in flight.
bool Load::settling(const Slot& slot) const {
  return (options_.rate_per_s > 0 ? slot.since_ns : slot.lane->connection.read_ns()) < settled_ns_;
}

void Load::judge(Slot& slot, int64_t took_ns) {
  const bool uncounted = settling(slot);
  if (uncounted && (slot.http_status != 200 || slot.grpc_status != 0)) {
    ++report_.settling;
    return;
  }
  if (slot.http_status != 200) {
    ++report_.errors["http:" + std::to_string(slot.http_status)];
    return;
  }
  if (slot.grpc_status != 0) {
    ++report_.errors[slot.grpc_status < 0 ? "none" : std::to_string(slot.grpc_status)];
    if (report_.first_error.empty()) report_.first_error = slot.grpc_message;
    return;
  }
  const Verdict verdict = payload_.judge(slot.number, slot.body);
  if (verdict != Verdict::right) {
    ++report_.wrong[static_cast<int>(verdict)];
    return;
  }
  if (uncounted) {
    ++report_.settling;
    return;
  }
  report_.latency.record(took_ns);
  ++(options_.deadline_ms > 0 && took_ns > ns(options_.deadline_ms / 1e3) ? report_.late : report_.right);
}

void Load::finish() {
  finishing_ = true;
  for (auto& lane : lanes_) lane->connection.close();
}

}  // namespace podium::client
