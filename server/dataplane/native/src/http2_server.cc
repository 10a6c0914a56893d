#include "http2_server.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>

namespace podium {

NativeHttpServer::NativeHttpServer(const HttpConfig& config, Door& door, int io_threads) : config_(config) {
  for (int index = 0; index < std::max(io_threads, 1); ++index) {
    loops_.push_back(std::make_unique<HttpLoop>(*this, config_, door, index));
  }
}

NativeHttpServer::~NativeHttpServer() { stop(); }

void NativeHttpServer::listen(int fd, bool tls) { listeners_.push_back(std::make_shared<HttpListener>(fd, tls)); }

void NativeHttpServer::set_tls(const TlsFiles& files) {
  Ref<TlsContext> made = TlsContext::make(files);
  std::lock_guard<std::mutex> lock(tls_mutex_);
  tls_ = std::move(made);
}

void NativeHttpServer::on_handshake(std::function<void()> check) { check_ = std::move(check); }

Ref<TlsContext> NativeHttpServer::tls_for_handshake() {
  if (check_) check_();
  std::lock_guard<std::mutex> lock(tls_mutex_);
  return tls_;
}

void NativeHttpServer::start() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (started_ || stopped_) throw std::logic_error("The server was started already");
  started_ = true;
  for (auto& loop : loops_) {
    for (auto& listener : listeners_) loop->call([&loop = *loop, listener] { loop.listen(listener); });
  }
  listeners_.clear();
  for (auto& loop : loops_) loop->start();
}

void NativeHttpServer::place(HttpLoop& accepted_by, int fd, bool tls) {
  uint64_t others = connections_.fetch_add(1, std::memory_order_relaxed);
  if (config_.max_connections && others >= config_.max_connections) {
    connection_closed();
    accepted_by.tallies().connections_refused.add();
    ::close(fd);
    return;
  }
  accepted_by.tallies().connections_accepted.add();
  auto fewest = std::min_element(loops_.begin(), loops_.end(), [&accepted_by](const auto& one, const auto& other) {
    uint64_t of_one = one->placed(), of_other = other->placed();
    return of_one < of_other || (of_one == of_other && one.get() == &accepted_by);
  });
  HttpLoop& home = **fewest;
  home.place_one();
  if (&home == &accepted_by) return home.adopt(fd, tls);
  home.call([&home, fd, tls] { home.adopt(fd, tls); });
}

void NativeHttpServer::drain() {
  draining_ = true;
  for (auto& loop : loops_) loop->call([&loop = *loop] { loop.drain(); });
}

uint64_t NativeHttpServer::unanswered() const {
  uint64_t open = 0;
  for (const auto& loop : loops_) open += loop->tallies().streams_open.value() + loop->tallies().connections_blocked.value();
  return open;
}

void NativeHttpServer::progress() {
  if (!draining_.load(std::memory_order_relaxed)) return;
  std::lock_guard<std::mutex> lock(mutex_);
  call_ended_.notify_all();
}

bool NativeHttpServer::wait_drained(double timeout_s) {
  std::unique_lock<std::mutex> lock(mutex_);
  auto most = std::chrono::duration<double>(std::clamp(timeout_s, 0.0, 1e8));
  return call_ended_.wait_for(lock, std::chrono::duration_cast<std::chrono::nanoseconds>(most),
                              [this] { return unanswered() == 0; });
}

void NativeHttpServer::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (std::exchange(stopped_, true)) return;
  }
  for (auto& loop : loops_) loop->call([&loop = *loop] { loop.stop(); });
  for (auto& loop : loops_) loop->join();
  listeners_.clear();
}

HttpCounters NativeHttpServer::counters() const {
  HttpCounters sum{};
  for (const auto& loop : loops_) {
    const LoopTallies& one = loop->tallies();
    sum.connections_open += one.connections_open.value();
    sum.connections_accepted += one.connections_accepted.value();
    sum.connections_refused += one.connections_refused.value();
    sum.streams_open += one.streams_open.value();
    sum.streams_started += one.streams_started.value();
    sum.streams_refused += one.streams_refused.value();
    sum.bytes_received += one.bytes_received.value();
    sum.bytes_sent += one.bytes_sent.value();
    sum.bytes_copied += one.bytes_copied.value();
    sum.protocol_errors += one.protocol_errors.value();
    sum.floods += one.floods.value();
    sum.stalled += one.stalled.value();
    sum.tls_failures += one.tls_failures.value();
  }
  return sum;
}

std::unique_ptr<HttpServer> make_http_server(const HttpConfig& config, Door& door, int io_threads) {
  return std::make_unique<NativeHttpServer>(config, door, io_threads);
}

}  // namespace podium
