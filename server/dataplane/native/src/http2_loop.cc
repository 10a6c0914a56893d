#include "http2_loop.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "http2_connection.h"
#include "http2_listener.h"
#include "http2_server.h"

namespace podium {

namespace {

constexpr int round_events = 256;

// A loop outlives what goes wrong on it, which is lack of memory: that ends the connection it was for.
template <typename Function>
void contain(const Function& function, Watched* watched = nullptr) noexcept {
  try {
    function();
  } catch (...) {
    if (watched) watched->lost();
  }
}

}  // namespace

HttpLoop::HttpLoop(NativeHttpServer& server, const HttpConfig& config, Door& door, int index)
    : server_(server), config_(config), door_(door), index_(index), random_(std::random_device{}()) {
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  wake_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = nullptr;
  if (epoll_ < 0 || wake_ < 0 || epoll_ctl(epoll_, EPOLL_CTL_ADD, wake_, &event)) {
    std::system_error error(errno, std::generic_category(), "epoll");
    if (epoll_ >= 0) ::close(epoll_);
    if (wake_ >= 0) ::close(wake_);
    throw error;
  }
  look_at_clock();
}

HttpLoop::~HttpLoop() {
  join();
  // sockets that were handed over too late are closed
  draining_ = true;
  run_posted();
  buried_.clear();
  ::close(wake_);
  ::close(epoll_);
}

void HttpLoop::start() {
  // signals are for the threads that wait for them
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_setname_np(thread_.native_handle(), ("podium-io-" + std::to_string(index_)).c_str());
}

void HttpLoop::join() {
  if (thread_.joinable()) thread_.join();
}

void HttpLoop::put(Posted&& posted) {
  // all of it under the lock: once a poster has left that, it no longer touches the loop, which may be about to end
  std::lock_guard<std::mutex> lock(mutex_);
  inbox_.push_back(std::move(posted));
  // it says that it sleeps, and then looks into the inbox once more: one of the two sees the other
  if (asleep_.exchange(false)) {
    uint64_t one = 1;
    ssize_t written;
    do {
      written = ::write(wake_, &one, sizeof one);
    } while (written < 0 && errno == EINTR);
  }
}

void HttpLoop::post(std::vector<Command>&& commands, std::function<void()> written) {
  put(Posted{std::move(commands), std::move(written), true});
}

void HttpLoop::call(std::function<void()> function) { put(Posted{{}, std::move(function), false}); }

void HttpLoop::watch(int fd, uint32_t events, Watched& watched, bool fresh) {
  epoll_event event{};
  event.events = events;
  event.data.ptr = &watched;
  if (epoll_ctl(epoll_, fresh ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event)) {
    throw std::system_error(errno, std::generic_category(), "epoll_ctl");
  }
}

void HttpLoop::forget(int fd) { epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr); }

bool HttpLoop::reserve(size_t size) {
  if (config_.max_buffered_bytes && buffered_ + size > config_.max_buffered_bytes) return false;
  buffered_ += size;
  return true;
}

void HttpLoop::stream_ended() {
  tallies_.streams_open.take();
  server_.progress();
}

void HttpLoop::unblocked() {
  tallies_.connections_blocked.take();
  server_.progress();
}

void HttpLoop::adopt(int fd, bool tls) {
  int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);  // fails on unix sockets, which need none
  std::unique_ptr<HttpConnection> connection;
  try {
    Ref<TlsContext> context = tls && !draining_ ? server_.tls_for_handshake() : Ref<TlsContext>();
    if (!draining_ && !(tls && !context)) {
      connection = std::make_unique<HttpConnection>(*this, fd, peer_address(fd), context);
      connections_.insert(connection.get());
      connection->open();
      connection.release();
      tallies_.connections_open.add();
      return;
    }
    ::close(fd);
  } catch (...) {
    // no memory, or nothing to watch it with: this connection is lost, the others live
    if (connection) {
      connections_.erase(connection.get());
      unlist(*connection);
    } else {
      ::close(fd);
    }
  }
  tallies_.connections_refused.add();
  displaced();
}

void HttpLoop::unlist(HttpConnection& connection) {
  for (std::vector<HttpConnection*>* list : {&touched_, &again_}) {
    list->erase(std::remove(list->begin(), list->end(), &connection), list->end());
  }
}

void HttpLoop::displaced() {
  placed_.fetch_sub(1, std::memory_order_relaxed);
  server_.connection_closed();
}

void HttpLoop::bury(HttpConnection& connection) {
  connections_.erase(&connection);
  unlist(connection);
  buried_.emplace_back(&connection);
  tallies_.connections_open.take();
  displaced();
}

void HttpLoop::listen(const std::shared_ptr<HttpListener>& listener) {
  if (!draining_) listening_.push_back(std::make_unique<Accepting>(*this, listener));
}

void HttpLoop::drain() {
  if (std::exchange(draining_, true)) return;
  listening_.clear();
  const std::vector<HttpConnection*> all(connections_.begin(), connections_.end());
  for (HttpConnection* connection : all) connection->drain();
  door_.leaving(*this);
}

void HttpLoop::stop() {
  draining_ = stopping_ = true;
  listening_.clear();
  const std::vector<HttpConnection*> all(connections_.begin(), connections_.end());
  for (HttpConnection* connection : all) connection->stop();
}

void HttpLoop::round() {
  wait();
  run_posted();
  contain([this] { timers_.fire(look_at_clock()); });
  contain([this] { door_.round_ended(*this); });
  flush();
  buried_.clear();
}

void HttpLoop::run() {
  while (!stopping_) round();
  // what was posted since is for calls that have ended
  run_posted();
  flush();
  buried_.clear();
}

void HttpLoop::wait() {
  std::array<epoll_event, round_events> events;
  bool busy = !touched_.empty() || !again_.empty();
  int64_t wait_ms = 0;
  if (!busy) {
    asleep_.store(true);
    std::lock_guard<std::mutex> lock(mutex_);
    busy = !inbox_.empty();
  }
  if (!busy) wait_ms = std::clamp<int64_t>((timers_.next_due_ns() - now_ns() + ns_per_ms - 1) / ns_per_ms, 0, 60'000);
  int count = epoll_wait(epoll_, events.data(), round_events, static_cast<int>(wait_ms));
  asleep_.store(false);
  look_at_clock();
  std::vector<HttpConnection*> again;
  again.swap(again_);
  for (HttpConnection* connection : again) contain([connection] { connection->ready(EPOLLIN); }, connection);
  for (int at = 0; at < count; ++at) {
    auto* watched = static_cast<Watched*>(events[static_cast<size_t>(at)].data.ptr);
    if (!watched) {
      uint64_t wakes;
      (void)!::read(wake_, &wakes, sizeof wakes);
      continue;
    }
    contain([&] { watched->ready(events[static_cast<size_t>(at)].events); }, watched);
  }
}

void HttpLoop::run_posted() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    doing_.swap(inbox_);
  }
  for (Posted& posted : doing_) {
    for (Command& command : posted.commands) obey(command);
    if (posted.after_flush) {
      if (posted.function) written_.push_back(std::move(posted.function));
    } else {
      contain(posted.function);
    }
  }
  doing_.clear();
}

void HttpLoop::obey(Command& command) {
  auto& stream = static_cast<HttpStream&>(*command.stream);
  try {
    if (command.answers >= 0) return door_.answered(stream, command.answers, std::move(command.message));
    if (command.message.size) stream.send(std::move(command.message));
    if (command.ends) stream.finish(command.code, command.text, command.trailing);
  } catch (...) {
    stream.abandon();
  }
}

void HttpLoop::flush() {
  flushing_.swap(touched_);
  for (HttpConnection* connection : flushing_) contain([connection] { connection->flush(); }, connection);
  std::vector<std::function<void()>> written = std::move(written_);
  written_.clear();
  for (std::function<void()>& told : written) contain(told);
  for (HttpConnection* connection : flushing_) {
    if (connection->has_writable()) contain([connection] { connection->deliver_writable(); }, connection);
  }
  flushing_.clear();
}

}  // namespace podium
