// One run of load: connections, the calls on them, when they start and what became of them. One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "connection.h"
#include "options.h"
#include "pacing.h"
#include "payload.h"
#include "report.h"

namespace podium::client {

class Load : public Connection::Owner {
 public:
  Load(const Options& options, Payload& payload);
  ~Load() override;

  // Blocks until the requests are answered, or the time is over and what was open has ended, or nothing comes any more.
  // Throws std::runtime_error if no connection could be made at all.
  Report run();

 private:
  struct Lane;
  struct Slot : Call {
    Lane* lane = nullptr;
    uint64_t number = 0;
    int64_t since_ns = 0;  // due in an open loop, sent in a closed one
  };
  struct Lane {
    Lane(const Target& target, const std::vector<nghttp2_nv>& fields, Load& load, int epoll, size_t slots);
    Connection connection;
    std::vector<Slot> slots;
    std::vector<Slot*> idle;
    uint64_t started = 0, answered = 0;  // on the present connection
    int64_t retry_ns = 0;
    bool dirty = false;
  };

  void call_ended(Connection& connection, Call& call, Ending ending, uint32_t code) override;
  bool settling(const Slot& slot) const;
  void judge(Slot& slot, int64_t took_ns);
  void connect_all();
  void open_closed(int64_t now);
  void handle_events(int timeout_ms);
  void settle(Lane& lane, bool alive);
  void start(Lane& lane, int64_t since_ns);
  bool may_start(const Lane& lane) const;
  void refill(Lane& lane);
  void start_due();
  Lane* next_lane();
  bool over(int64_t now);
  void wait(int64_t now);
  void finish();

  const Options& options_;
  Payload& payload_;
  Target target_;
  std::string timeout_;
  std::vector<nghttp2_nv> fields_;
  int epoll_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::vector<Lane*> closed_, dirty_;
  Pacer pacer_;
  Report report_;
  size_t cursor_ = 0, connecting_ = 0, in_flight_ = 0;
  int64_t settled_ns_ = 0, stop_ns_ = 0, progress_ns_ = 0, last_answer_ns_ = 0;
  bool issuing_ = false, full_ = false, finishing_ = false;
};

}  // namespace podium::client
