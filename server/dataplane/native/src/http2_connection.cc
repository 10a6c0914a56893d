#include "http2_connection.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace podium {

namespace {

// read from one connection in one round, so that one fast caller does not keep the others waiting
constexpr size_t round_bytes = 256 << 10;
// written to one connection in one round
constexpr size_t round_written_bytes = 4 << 20;
// room for one read: the loop's buffer, or a larger one while a large message arrives
constexpr size_t least_room_bytes = 8 << 10;
constexpr size_t large_slab_bytes = 256 << 10;
constexpr size_t large_message_bytes = 64 << 10;
constexpr int max_pieces = 256;

constexpr int64_t never_ms = no_deadline_ns / 4 / ns_per_ms;

// 0 is never
int64_t keepalive_ms(int64_t set) { return set > 0 ? std::min(set, never_ms) : never_ms; }

}  // namespace

HttpConnection::HttpConnection(HttpLoop& loop, int fd, std::string address, Ref<TlsContext> tls)
    : loop_(loop),
      fd_(fd),
      peer_(Ref<Peer>::take(new Peer)),
      tls_context_(std::move(tls)),
      output_(loop.outgoing()),
      strikes_(loop.config().min_ping_interval_ms, loop.config().max_ping_strikes, loop.config().keepalive_without_calls),
      keepalive_(keepalive_ms(loop.config().keepalive_time_ms), loop.config().keepalive_timeout_ms,
                 loop.config().keepalive_without_calls, loop.config().max_pings_without_data, loop.now()),
      age_(loop.config().max_connection_idle_ms, loop.config().max_connection_age_ms, loop.config().max_connection_age_grace_ms,
           loop.chance(), loop.now()),
      flood_(FloodLimits{}, loop.now()),
      opened_ns_(loop.now()),
      written_ns_(loop.now()) {
  peer_->address = std::move(address);
}

HttpConnection::~HttpConnection() {
  loop_.timers().cancel(timer_);
  if (session_) nghttp2_session_del(session_);
  tls_.reset();
  if (fd_ >= 0) ::close(fd_);
}

void HttpConnection::open() {
  make_session();
  if (tls_context_) {
    tls_ = std::make_unique<TlsSession>(tls_context_, fd_);
    output_.join();
    phase_ = Phase::handshake;
  }
  loop_.watch(fd_, EPOLLIN, *this, true);
  rearm();
  if (!tls_) touch();
}

void HttpConnection::ready(uint32_t events) {
  if (closed()) return;
  if (phase_ == Phase::handshake) handshake();
  if (!closed() && phase_ != Phase::handshake && (events & ~static_cast<uint32_t>(EPOLLOUT) || tls_)) receive();
  if (closed()) return;
  if (events & EPOLLOUT) {
    set_blocked(false);
    touch();
  }
}

void HttpConnection::handshake() {
  switch (tls_->handshake()) {
    case TlsSession::Io::ok:
      peer_->auth = tls_->properties();
      phase_ = Phase::open;
      watch(false);
      return touch();
    case TlsSession::Io::want_read:
      return watch(false);
    case TlsSession::Io::want_write:
      return watch(true);
    case TlsSession::Io::closed:
      return close();  // a probe of the port, no failure
    case TlsSession::Io::failed:
      loop_.tallies().tls_failures.add();
      return close();
  }
}

TlsSession::Io HttpConnection::socket_read(uint8_t* target, size_t capacity, size_t* got) {
  if (tls_) return tls_->read(target, capacity, got);
  for (;;) {
    ssize_t count = ::recv(fd_, target, capacity, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno == EAGAIN ? TlsSession::Io::want_read : TlsSession::Io::failed;
    *got = static_cast<size_t>(count);
    return count ? TlsSession::Io::ok : TlsSession::Io::closed;
  }
}

void HttpConnection::receive() {
  size_t budget = round_bytes;
  while (!closed() && receive_once(&budget)) {
  }
  if (!closed() && tls_ && !budget) loop_.again(*this);
}

// Whether there may be more, and it may be read in this round.
bool HttpConnection::receive_once(size_t* budget) {
  Bump& buffer = loop_.received();
  buffer.reserve(least_room_bytes, missing_ > large_message_bytes ? large_slab_bytes : 0);
  size_t room = std::min(buffer.room(), *budget);
  size_t got = 0;
  switch (socket_read(buffer.next(), room, &got)) {
    case TlsSession::Io::ok:
      break;
    case TlsSession::Io::want_read:
      return false;
    case TlsSession::Io::want_write:
      watch(true);
      return false;
    default:
      close();
      return false;
  }
  *budget -= got;
  loop_.tallies().bytes_received.add(got);
  if (phase_ == Phase::lingering) return *budget > 0;
  int64_t now = loop_.look_at_clock();
  keepalive_.heard(now);
  const uint8_t* bytes = buffer.next();
  buffer.take(got);
  missing_ = 0;
  ssize_t parsed = nghttp2_session_mem_recv(session_, bytes, got);
  touch();
  if (parsed < 0) {
    fail_session(static_cast<int>(parsed));
    return false;
  }
  // a connection that makes us answer and does not read the answers
  if (blocked_ && nghttp2_session_get_outbound_queue_size(session_) > max_queued_frames + 2 * calls_) {
    loop_.tallies().floods.add();
    close();
    return false;
  }
  return *budget && (got == room || tls_);
}

void HttpConnection::fail_session(int error) {
  if (!calmed_) {
    (error == NGHTTP2_ERR_FLOODED ? loop_.tallies().floods : loop_.tallies().protocol_errors).add();
  }
  // what it has to say about that (GOAWAY) is written if the socket takes it
  if (!calmed_) {
    uint32_t reason = error == NGHTTP2_ERR_FLOODED ? NGHTTP2_ENHANCE_YOUR_CALM : NGHTTP2_PROTOCOL_ERROR;
    nghttp2_session_terminate_session(session_, reason);
  }
  flush();
  if (closed() || phase_ == Phase::lingering) return;
  while (streams_) end_stream(*streams_);
  linger();
}

void HttpConnection::touch() {
  if (touched_ || closed()) return;
  touched_ = true;
  loop_.touch(*this);
}

TlsSession::Io HttpConnection::socket_write(size_t* put) {
  iovec pieces[max_pieces];
  if (tls_) {
    output_.gather(pieces, 1);
    return tls_->write(static_cast<const uint8_t*>(pieces[0].iov_base), pieces[0].iov_len, put);
  }
  msghdr message{};
  message.msg_iov = pieces;
  message.msg_iovlen = static_cast<size_t>(output_.gather(pieces, max_pieces));
  for (;;) {
    ssize_t count = ::sendmsg(fd_, &message, MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno == EAGAIN ? TlsSession::Io::want_write : TlsSession::Io::failed;
    *put = static_cast<size_t>(count);
    return TlsSession::Io::ok;
  }
}

// Whether all that was gathered is out; if not, the socket is blocked, or the connection closed.
bool HttpConnection::write_out() {
  while (output_.pending()) {
    size_t put = 0;
    switch (socket_write(&put)) {
      case TlsSession::Io::ok:
        output_.written(put);
        loop_.tallies().bytes_sent.add(put);
        written_ns_ = loop_.now();
        break;
      case TlsSession::Io::want_read:
      case TlsSession::Io::want_write:
        set_blocked(true);
        output_.settle();
        return false;
      default:
        close();
        return false;
    }
  }
  return true;
}

// What nghttp2 has to send, up to a bound. False: it can send no more.
bool HttpConnection::gather() {
  while (output_.pending() < high_water_bytes) {
    const uint8_t* bytes = nullptr;
    ssize_t size = nghttp2_session_mem_send(session_, &bytes);
    if (size <= 0) return size == 0;
    output_.copy(bytes, static_cast<size_t>(size));
  }
  return true;
}

void HttpConnection::set_blocked(bool blocked) {
  if (blocked == blocked_) return;
  blocked_ = blocked;
  written_ns_ = loop_.now();
  if (blocked) {
    loop_.tallies().connections_blocked.add();
  } else {
    loop_.unblocked();
  }
}

bool HttpConnection::takes_answers() {
  uint64_t most = loop_.config().max_unread_bytes;
  if (!most || unsent_ + output_.pending() <= most) return true;
  overfull_ = true;
  touch();
  return false;
}

void HttpConnection::flush() {
  touched_ = false;
  if (closed() || phase_ != Phase::open) return;
  for (size_t left = round_written_bytes; !blocked_;) {
    if (!gather()) return close();
    size_t size = output_.pending();
    if (!size || !write_out()) break;
    if (size >= left) {
      touch();
      break;
    }
    left -= size;
  }
  if (closed()) return;
  if (overfull_) return close();
  watch(blocked_);
  if (!output_.pending() && !nghttp2_session_want_read(session_) && !nghttp2_session_want_write(session_)) {
    while (streams_) end_stream(*streams_);
    return linger();
  }
  rearm();
}

void HttpConnection::watch(bool writes) {
  if (writes == watches_writes_) return;
  watches_writes_ = writes;
  loop_.watch(fd_, writes ? EPOLLIN | EPOLLOUT : EPOLLIN, *this, false);
}

void HttpConnection::deliver_writable() {
  std::vector<Ref<HttpStream>> streams = std::move(writable_);
  writable_.clear();
  for (Ref<HttpStream>& stream : streams) {
    stream->drained_ = false;
    if (stream->open() && !stream->unsent_bytes()) loop_.door().writable(*stream);
  }
}

void HttpConnection::lost() noexcept {
  try {
    close();
  } catch (...) {
    // a door that could not even be told; the next round of this connection tries again
  }
}

void HttpConnection::close() {
  if (closed()) return;
  set_blocked(false);
  while (streams_) end_stream(*streams_);
  loop_.timers().cancel(timer_);
  loop_.forget(fd_);
  if (tls_) tls_->close();
  output_.clear();
  writable_.clear();
  ::close(std::exchange(fd_, -1));
  loop_.bury(*this);
}

}  // namespace podium
