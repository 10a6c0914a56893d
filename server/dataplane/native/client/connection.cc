#include "connection.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "callbacks.h"
#include "clock.h"

namespace podium::client {

namespace {

constexpr int32_t window_bytes = 64 << 20;
constexpr size_t read_bytes = 256 << 10;
// one round of reading, so that a fast connection does not keep the others waiting
constexpr int reads_per_round = 4;

}  // namespace

Connection::Connection(const Target& target, const std::vector<nghttp2_nv>& fields, Owner& owner, int epoll,
                       void* place)
    : target_(target), fields_(fields), owner_(owner), epoll_(epoll), place_(place) {}

Connection::~Connection() { close(); }

bool Connection::open() {
  descriptor_ = target_.connect_socket();
  if (descriptor_ < 0) return false;
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT;
  event.data.ptr = this;
  watching_writes_ = true;
  if (epoll_ctl(epoll_, EPOLL_CTL_ADD, descriptor_, &event) != 0) {
    ::close(descriptor_);
    descriptor_ = -1;
    return false;
  }
  return true;
}

void Connection::start_session() {
  nghttp2_option* option = nullptr;
  if (nghttp2_option_new(&option) != 0) throw std::bad_alloc();
  // a server that limits streams says so in its SETTINGS; until they are there 100 would be assumed
  nghttp2_option_set_peer_max_concurrent_streams(option, 1u << 20);
  const int made = nghttp2_session_client_new2(&session_, Callbacks::table(), this, option);
  nghttp2_option_del(option);
  if (made != 0) throw std::bad_alloc();
  const nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
                                             {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, window_bytes}};
  nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, settings, 2);
  nghttp2_session_set_local_window_size(session_, NGHTTP2_FLAG_NONE, 0, window_bytes);
  established_ = true;
  leaving_ = false;
}

bool Connection::submit(Call& call) {
  call.sent_bytes = 0;
  call.body.clear();
  call.http_status = 0;
  call.grpc_status = -1;
  call.grpc_message.clear();
  call.complete = false;
  nghttp2_data_provider provider;
  provider.source.ptr = &call;
  provider.read_callback = Callbacks::read_message;
  const int32_t id = nghttp2_submit_request(session_, nullptr, fields_.data(), fields_.size(), &provider, &call);
  if (id < 0) {
    leaving_ = true;  // out of stream ids, or memory: what is open may end, the next calls need another connection
    return false;
  }
  call.stream_id = id;
  call.place = calls_.size();
  calls_.push_back(&call);
  return true;
}

bool Connection::on_ready(uint32_t events) {
  if (!established_) {
    if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) return true;
    if (const int error = connect_error(descriptor_); error != 0) {
      errno = error;
      return false;
    }
    start_session();
    return flush();
  }
  if ((events & (EPOLLIN | EPOLLERR | EPOLLHUP)) && !read_all()) return false;
  return !over();
}

bool Connection::read_all() {
  static thread_local std::vector<uint8_t> buffer(read_bytes);
  for (int round = 0; round < reads_per_round; ++round) {
    const ssize_t got = recv(descriptor_, buffer.data(), buffer.size(), 0);
    if (got < 0) {
      if (errno == EINTR) continue;
      return errno == EAGAIN || errno == EWOULDBLOCK;
    }
    if (got == 0) return false;
    read_ns_ = now_ns();
    if (nghttp2_session_mem_recv(session_, buffer.data(), static_cast<size_t>(got)) < 0) return false;
    if (static_cast<size_t>(got) < buffer.size()) break;
  }
  return true;
}

bool Connection::flush() {
  if (!established_) return true;
  for (;;) {
    if (nghttp2_session_send(session_) != 0) return false;
    while (written_ < out_.size()) {
      const ssize_t sent = send(descriptor_, out_.data() + written_, out_.size() - written_, MSG_NOSIGNAL);
      if (sent >= 0) {
        written_ += static_cast<size_t>(sent);
      } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
        watch(true);
        return true;
      } else if (errno != EINTR) {
        return false;
      }
    }
    const bool filled = out_.size() >= Callbacks::out_limit_bytes;
    out_.clear();
    written_ = 0;
    if (!filled) break;
  }
  watch(false);
  return !over();
}

void Connection::watch(bool writing) {
  if (watching_writes_ == writing) return;
  epoll_event event{};
  event.events = writing ? EPOLLIN | EPOLLOUT : EPOLLIN;
  event.data.ptr = this;
  epoll_ctl(epoll_, EPOLL_CTL_MOD, descriptor_, &event);
  watching_writes_ = writing;
}

// After a GOAWAY the last answer ends a connection; after a violation nghttp2 wants nothing any more.
bool Connection::over() const {
  return (leaving_ && calls_.empty()) || (!nghttp2_session_want_read(session_) && !nghttp2_session_want_write(session_));
}

void Connection::end(Call& call, Ending ending, uint32_t code) {
  calls_.back()->place = call.place;
  calls_[call.place] = calls_.back();
  calls_.pop_back();
  owner_.call_ended(*this, call, ending, code);
}

void Connection::close() {
  if (descriptor_ < 0) return;
  if (established_ && written_ == out_.size()) {
    // one try: who does not read it does not need it
    nghttp2_session_terminate_session(session_, NGHTTP2_NO_ERROR);
    out_.clear();
    if (nghttp2_session_send(session_) == 0 && !out_.empty()) {
      [[maybe_unused]] const ssize_t sent = send(descriptor_, out_.data(), out_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    }
  }
  ::close(descriptor_);
  descriptor_ = -1;
  established_ = false;
  const bool told = leaving_;
  leaving_ = false;
  // the session goes first: no callback may find a call that has ended
  nghttp2_session_del(session_);
  session_ = nullptr;
  read_ns_ = now_ns();
  while (!calls_.empty()) {
    Call& call = *calls_.back();
    const bool unseen = told && call.stream_id > last_stream_id_;
    end(call, unseen ? Ending::refused : Ending::lost, unseen ? NGHTTP2_REFUSED_STREAM : 0);
  }
  out_.clear();
  out_.shrink_to_fit();
  written_ = 0;
  last_stream_id_ = 0;
}

}  // namespace podium::client
