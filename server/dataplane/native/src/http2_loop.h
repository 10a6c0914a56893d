// One IO thread: epoll, timers, and what other threads posted.
//
// A round: sockets are read and their calls told to the door, posted commands are done, `Door::round_ended`, and only then is
// each connection written once. So small answers leave together, with one system call a connection.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <unordered_set>
#include <vector>

#include "http2.h"
#include "http2_output.h"
#include "http2_pool.h"
#include "http2_timers.h"
#include "tls.h"

namespace podium {

class HttpConnection;
class HttpListener;
class NativeHttpServer;

// What a file descriptor in epoll leads to.
class Watched {
 public:
  virtual ~Watched() = default;
  virtual void ready(uint32_t events) = 0;
  // `ready` or what it led to lacked memory or another resource.
  virtual void lost() noexcept = 0;
};

// Written by one loop, read by any thread.
class Tally {
 public:
  void add(uint64_t count = 1) { value_.store(value_.load(std::memory_order_relaxed) + count, std::memory_order_relaxed); }
  void take(uint64_t count = 1) { add(~count + 1); }
  uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

struct LoopTallies {
  Tally connections_open, connections_accepted, connections_refused, streams_open, streams_started, streams_refused;
  Tally connections_blocked;  // their sockets take no more now
  Tally bytes_received, bytes_sent, bytes_copied, protocol_errors, floods, stalled, tls_failures;
};

class HttpLoop final : public Loop {
 public:
  HttpLoop(NativeHttpServer& server, const HttpConfig& config, Door& door, int index);
  ~HttpLoop() override;

  int index() const override { return index_; }
  void post(std::vector<Command>&& commands, std::function<void()> written) override;
  void call(std::function<void()> function) override;

  // Any thread, once.
  void start();
  void join();
  // What the thread does again and again. Instead of `start`: fuzzers run rounds themselves.
  void round();

  // The loop's thread.
  const HttpConfig& config() const { return config_; }
  Door& door() { return door_; }
  NativeHttpServer& server() { return server_; }
  LoopTallies& tallies() { return tallies_; }
  const LoopTallies& tallies() const { return tallies_; }
  Timers& timers() { return timers_; }
  Bump& received() { return received_; }
  Bump& outgoing() { return outgoing_; }
  Pool& pool() { return pool_; }
  int64_t now() const { return now_; }
  int64_t look_at_clock() { return now_ = now_ns(); }
  double chance() { return std::uniform_real_distribution<double>(0, 1)(random_); }

  void watch(int fd, uint32_t events, Watched& watched, bool fresh);
  void forget(int fd);
  void touch(HttpConnection& connection) { touched_.push_back(&connection); }
  // It has more to read than this round allowed, though its socket may not say so.
  void again(HttpConnection& connection) { again_.push_back(&connection); }
  // Whether `size` bytes more of messages under way are within the limit; they count from now on.
  bool reserve(size_t size);
  void release(size_t size) { buffered_ -= size; }
  void stream_ended();
  void unblocked();

  // Any thread: connections that it has or is about to have.
  uint64_t placed() const { return placed_.load(std::memory_order_relaxed); }
  void place_one() { placed_.fetch_add(1, std::memory_order_relaxed); }

  // Takes `fd` over.
  void adopt(int fd, bool tls);
  void bury(HttpConnection& connection);  // it has closed itself
  void listen(const std::shared_ptr<HttpListener>& listener);
  void drain();
  void stop();

 private:
  struct Posted {
    std::vector<Command> commands;
    std::function<void()> function;
    bool after_flush;
  };
  void put(Posted&& posted);
  void run();
  void wait();
  void run_posted();
  void obey(Command& command);
  void displaced();
  void unlist(HttpConnection& connection);
  void flush();

  NativeHttpServer& server_;
  const HttpConfig& config_;
  Door& door_;
  int index_;
  // before what uses them, which goes first
  Pool pool_;
  Timers timers_;
  Bump received_{64 << 10};
  Bump outgoing_{64 << 10};
  int epoll_ = -1;
  int wake_ = -1;
  std::thread thread_;

  std::mutex mutex_;
  std::vector<Posted> inbox_;  // under mutex_
  std::atomic<bool> asleep_{false};
  std::atomic<uint64_t> placed_{0};

  std::vector<Posted> doing_;
  std::vector<std::function<void()>> written_;
  std::vector<HttpConnection*> touched_, flushing_, again_;
  std::unordered_set<HttpConnection*> connections_;
  std::vector<std::unique_ptr<HttpConnection>> buried_;
  std::vector<std::unique_ptr<Watched>> listening_;
  LoopTallies tallies_;
  uint64_t buffered_ = 0;
  int64_t now_ = 0;
  bool draining_ = false;
  bool stopping_ = false;
  std::minstd_rand random_;
};

}  // namespace podium
