// The servers behind fuzzed connections. Their loops have no threads: the fuzzer runs their rounds, and says what time it is.
#pragma once

#include <cstdint>

#include "compression.h"
#include "connection_caller.h"
#include "connection_door.h"
#include "http2_server.h"
#include "require.h"

namespace podium {

inline HttpConfig fuzz_config(int which) {
  HttpConfig made;
  made.max_message_bytes = 64 << 10;
  switch (which) {
    case 0:
      made.compression = gzip_encoding;
      break;
    case 1:  // little of everything
      made.max_message_bytes = 2048;
      made.max_metadata_bytes = 512;
      made.max_concurrent_streams = 2;
      made.max_buffered_bytes = 4096;
      made.max_unread_bytes = 32 << 10;
      made.stalled_ms = 60'000;
      break;
    case 2:  // little time
      made.max_connection_idle_ms = 60'000;
      made.max_connection_age_ms = 120'000;
      made.keepalive_time_ms = 30'000;
      made.keepalive_without_calls = true;
      made.max_ping_strikes = 0;
      made.stalled_ms = 90'000;
      made.compression = deflate_encoding;
      break;
    default:
      made.max_message_bytes = 16 << 20;  // beyond a window
      made.keepalive_time_ms = 0;
  }
  return made;
}

// One server, for all inputs that choose its configuration; or for one that ends it.
class Served {
 public:
  explicit Served(const HttpConfig& config) : config_(config), server_(config, door_, 1) {}

  FuzzDoor& door() { return door_; }
  HttpLoop& loop() { return static_cast<HttpLoop&>(server_.loop(0)); }
  void place(CallerEnd* end) { server_.place(loop(), end->take_server_end(), false); }

  // One round, which does not wait for what is not there yet.
  void turn() {
    loop().call([] {});
    loop().round();
  }
  // Until neither side moves another byte.
  void settle() {
    constexpr int most_rounds = 200;
    for (int rounds = 0; rounds < most_rounds; ++rounds) {
      uint64_t moved = moved_bytes();
      turn();
      if (moved == moved_bytes()) return;
    }
  }
  // All timers that are due by then fire now.
  void let_pass(int64_t ns) {
    loop().call([this, ns] { loop().timers().fire(loop().now() + ns); });
    settle();
  }

  void drain() {
    server_.drain();
    settle();
  }
  // Its callers need not have closed their ends. What they are answered with now comes too late.
  void stop() {
    server_.stop();
    turn();
    require_nothing_left();
  }

  // The caller has closed its end.
  void require_nothing_left() {
    settle();
    door_.answer_late(loop());
    settle();
    HttpCounters counters = server_.counters();
    require(!counters.connections_open && !loop().placed(), "no connection is left");
    require(!counters.streams_open, "no stream is left");
    require(server_.wait_drained(0), "no connection counts as blocked");
    require(!door_.open(), "the door knows how each call ended");
    require(!FuzzDoor::alive(), "no call is held");
    require(loop().timers().next_due_ns() == no_deadline_ns, "no timer is left");
    if (!config_.max_buffered_bytes) return;
    require(loop().reserve(config_.max_buffered_bytes), "no message under way is counted");
    loop().release(config_.max_buffered_bytes);
  }

  void require_serving() {
    CallerEnd end(0);
    place(&end);
    call_well_formed(&end, [this] { turn(); });
    end.close();
    require_nothing_left();
  }

 private:
  uint64_t moved_bytes() { return loop().tallies().bytes_received.value() + loop().tallies().bytes_sent.value(); }

  HttpConfig config_;
  FuzzDoor door_;
  NativeHttpServer server_;
};

inline Served& served(size_t which) {
  constexpr size_t configs = 4;
  static Served* const all[configs] = {new Served(fuzz_config(0)), new Served(fuzz_config(1)), new Served(fuzz_config(2)),
                                       new Served(fuzz_config(3))};
  return *all[which % configs];
}

}  // namespace podium
