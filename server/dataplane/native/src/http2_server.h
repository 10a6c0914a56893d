// The server: its loops, its listeners, its certificate.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "http2.h"
#include "http2_listener.h"
#include "http2_loop.h"

namespace podium {

class NativeHttpServer final : public HttpServer {
 public:
  NativeHttpServer(const HttpConfig& config, Door& door, int io_threads);
  ~NativeHttpServer() override;

  void listen(int fd, bool tls) override;
  void set_tls(const TlsFiles& files) override;
  void on_handshake(std::function<void()> check) override;
  void start() override;
  void drain() override;
  bool wait_drained(double timeout_s) override;
  void stop() override;
  HttpCounters counters() const override;
  Loop& loop(int index) override { return *loops_.at(static_cast<size_t>(index)); }

  // For loops, on their threads. `place` takes `fd` over, for the loop with the fewest connections: callers keep theirs for
  // long, and whichever loop is woken first would else get most of them.
  void place(HttpLoop& accepted_by, int fd, bool tls);
  void connection_closed() { connections_.fetch_sub(1, std::memory_order_relaxed); }
  void progress();
  Ref<TlsContext> tls_for_handshake();

 private:
  uint64_t unanswered() const;  // calls that are open, connections that have not taken their answers

  const HttpConfig config_;
  std::vector<std::shared_ptr<HttpListener>> listeners_;
  std::function<void()> check_;
  std::mutex tls_mutex_;
  Ref<TlsContext> tls_;  // under tls_mutex_
  std::atomic<uint64_t> connections_{0};

  std::mutex mutex_;
  std::condition_variable call_ended_;
  std::atomic<bool> draining_{false};
  bool started_ = false, stopped_ = false;
  std::vector<std::unique_ptr<HttpLoop>> loops_;  // last: they use the rest until they have ended
};

}  // namespace podium
