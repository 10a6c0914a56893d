// The calls of a connection, and the time it has: idle, age, keepalive, stalls, drain.
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "http2_connection.h"

namespace podium {

namespace {

// until the first frame of HTTP/2 is there, TLS and all (the C core gives 120 s; nobody honest needs 20)
constexpr int64_t greeting_ns = 20 * ns_per_s;
// for a caller to hear of the drain and to finish what it has begun to send (RFC 9113, 6.8: at least one round trip)
constexpr int64_t notice_ns = ns_per_s;
// for a caller to read what was written last: a socket that is closed with unread bytes resets the connection
constexpr int64_t linger_ns = ns_per_s;
constexpr uint8_t drain_ping[8] = {'d', 'r', 'a', 'i', 'n', 'i', 'n', 'g'};

}  // namespace

HttpStream* HttpConnection::begin_stream(int32_t id) {
  auto* stream = new HttpStream(*this, loop_, peer_, id, loop_.now());
  stream->next_ = streams_;
  if (streams_) streams_->previous_ = stream;
  streams_ = stream;
  ++calls_;
  loop_.tallies().streams_open.add();
  if (calls_ == 1) age_.calls(1, loop_.now());
  return stream;
}

void HttpConnection::end_stream(HttpStream& stream) {
  if (stream.previous_) {
    stream.previous_->next_ = stream.next_;
  } else {
    streams_ = stream.next_;
  }
  if (stream.next_) stream.next_->previous_ = stream.previous_;
  stream.next_ = stream.previous_ = nullptr;
  if (session_) nghttp2_session_set_stream_user_data(session_, stream.id(), nullptr);
  --calls_;
  if (!calls_) age_.calls(0, loop_.now());
  if (stream.id() == headers_of_) headers_ns_ = no_deadline_ns;
  Ref<HttpStream> last = Ref<HttpStream>::take(&stream);
  stream.closed();
  touch();
  loop_.stream_ended();
}

void HttpConnection::resume(HttpStream& stream) {
  if (std::exchange(stream.deferred_, false)) nghttp2_session_resume_data(session_, stream.id());
  touch();
}

void HttpConnection::reset(HttpStream& stream, uint32_t error) {
  nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, stream.id(), error);
  touch();
}

void HttpConnection::writable(HttpStream& stream) {
  if (std::exchange(stream.drained_, true)) return;
  writable_.emplace_back(stream);
}

void HttpConnection::reset_by_caller(HttpStream* stream) {
  int64_t now = loop_.now();
  if (!stream || stream->answered()) return;
  if (flood_.reset(now - stream->arrival_ns, now)) calm("too_many_resets");
}

void HttpConnection::pinged(const nghttp2_frame* frame) {
  if (frame->hd.flags & NGHTTP2_FLAG_ACK) {
    if (draining_ && !std::memcmp(frame->ping.opaque_data, drain_ping, sizeof drain_ping)) final_goaway();
  } else if (strikes_.received(loop_.now(), calls_ > 0)) {
    calm("too_many_pings");
  }
}

void HttpConnection::sent_data() {
  strikes_.sent();
  keepalive_.sent_data();
  flood_.sent_data();
}

void HttpConnection::calm(const char* reason) {
  if (std::exchange(calmed_, true)) return;
  loop_.tallies().floods.add();
  nghttp2_submit_goaway(session_, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(session_),
                        NGHTTP2_ENHANCE_YOUR_CALM, reinterpret_cast<const uint8_t*>(reason), std::strlen(reason));
}

void HttpConnection::drain() {
  if (closed() || draining_) return;
  draining_ = true;
  if (phase_ == Phase::handshake) return close();
  nghttp2_submit_shutdown_notice(session_);
  nghttp2_submit_ping(session_, NGHTTP2_FLAG_NONE, drain_ping);
  settle_ns_ = loop_.now() + notice_ns;
  touch();
}

void HttpConnection::final_goaway() {
  if (std::exchange(final_goaway_, true)) return;
  settle_ns_ = no_deadline_ns;
  nghttp2_submit_goaway(session_, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(session_), NGHTTP2_NO_ERROR,
                        nullptr, 0);
  touch();
}

void HttpConnection::linger() {
  phase_ = Phase::lingering;
  if (tls_) tls_->close();
  ::shutdown(fd_, SHUT_WR);
  settle_ns_ = loop_.now() + linger_ns;
  rearm();
}

void HttpConnection::stop() {
  if (closed()) return;
  for (HttpStream* stream = streams_; stream;) {
    Ref<HttpStream> current(*stream);
    stream = stream->next_;
    current->fail(Code::unavailable, "The server is shutting down");
  }
  nghttp2_session_terminate_session(session_, NGHTTP2_NO_ERROR);
  flush();
  if (closed()) return;
  // what was written last must not be lost to a reset
  ::shutdown(fd_, SHUT_WR);
  uint8_t unread[4096];
  for (int reads = 0; reads < 256 && ::recv(fd_, unread, sizeof unread, 0) > 0; ++reads) {
  }
  close();
}

void HttpConnection::rearm() {
  int64_t due = std::min({keepalive_.next_ns(), age_.next_ns(), settle_ns_});
  if (!heard_) due = std::min(due, opened_ns_ + greeting_ns);
  int64_t stalled_ns = loop_.config().stalled_ms * ns_per_ms;
  if (stalled_ns) due = std::min(due, headers_ns_ + stalled_ns);
  if (stalled_ns && blocked_) due = std::min(due, written_ns_ + stalled_ns);
  if (stalled_ns && unsent_) due = std::min(due, loop_.now() + stalled_ns);
  if (due < timer_.due_ns()) loop_.timers().set(timer_, std::max(due, loop_.now() + ns_per_ms));
}

// Something may be due; what is, is done, and the timer set to what comes next.
void HttpConnection::tick(int64_t now) {
  if (!heard_ && now >= opened_ns_ + greeting_ns) return close();
  if (now >= settle_ns_) {
    if (phase_ == Phase::lingering) return close();
    final_goaway();
  }
  if (phase_ == Phase::lingering) return rearm();
  if (!tick_stalled(now)) return;
  switch (keepalive_.step(now, calls_ > 0)) {
    case Keepalive::Step::close:
      return close();
    case Keepalive::Step::ping:
      nghttp2_submit_ping(session_, NGHTTP2_FLAG_NONE, nullptr);
      touch();
      break;
    case Keepalive::Step::nothing:
      break;
  }
  switch (age_.step(now)) {
    case AgePolicy::Step::close:
      return close();
    case AgePolicy::Step::drain:
      drain();
      break;
    case AgePolicy::Step::nothing:
      break;
  }
  if (!closed()) rearm();
}

// Answers that are not read, headers that do not end. Whether the connection is still there.
bool HttpConnection::tick_stalled(int64_t now) {
  int64_t stalled_ns = loop_.config().stalled_ms * ns_per_ms;
  if (!stalled_ns) return true;
  if ((blocked_ && now >= written_ns_ + stalled_ns) || now >= headers_ns_ + stalled_ns) {
    loop_.tallies().stalled.add();
    close();
    return false;
  }
  if (!unsent_) return true;
  // others' progress does not help a call whose own window stays shut
  for (HttpStream* stream = streams_; stream;) {
    Ref<HttpStream> current(*stream);
    stream = stream->next_;
    if (current->unsent_bytes()) current->passed_stall(now);
  }
  return true;
}

}  // namespace podium
