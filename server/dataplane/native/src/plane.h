// Queues and batches behind one lock: the native twin of server/dataplane/python/plane.py.
//
// Parties: IO threads admit and cancel (fast lane), Python's door does the same for the requests it decoded itself (slow lane),
// engine threads take and finish batches, one timer thread ends what expires while it waits. What a caller is told is written
// outside the lock.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "endings.h"
#include "entrance.h"
#include "http2.h"
#include "infer_request.h"
#include "limit.h"
#include "plan.h"
#include "tickets.h"

namespace podium {

// What became of a ticket at admission. `closed`: the version left service between its choice and now, choose again.
enum class Outcome : uint8_t { admitted, queue_full, passed, predicted, too_many_requests, too_many_bytes, closed, stopped };

// `ns` as in Admitted; `count` is what the limit has in flight: requests, or bytes.
struct Entered {
  Outcome outcome;
  int64_t ns = 0;
  uint64_t count = 0;
};

// When a batch was taken and executed; see Execution in interface.py. Units: monotonic ns; rows.
struct Execution {
  int64_t taken_ns = 0;
  int64_t ran_ns = 0;
  int64_t features_ns = 0;
  int64_t lead_ns = 0;
  int64_t rows = 0;
};

// Tickets that run together, from `take` to `finish`. Ownership: the engine thread that took it.
struct Taken {
  uint64_t queue_id = 0;
  uint64_t token = 0;
  std::string device;
  std::vector<Ref<Ticket>> tickets;
  int64_t rows = 0;
  Reason reason = Reason::drained;
  bool staged = false;
  int64_t taken_ns = 0;
  uint64_t gathered_bytes = 0;  // copied out of the requests' messages
  uint32_t size_class = 0;      // of all its tickets
};

// One output of a part: rows of an array that Python keeps alive during `finish`. `dims` as the array has them, the batch
// dimension included; `row_bytes` of the wire form. Where the elements have no fixed size, `offsets[i]` to `offsets[i + 1]` is
// row i. `there` false: the model gave none.
struct PartOutput {
  bool there = false;
  const uint8_t* data = nullptr;
  size_t size = 0;
  std::vector<int64_t> dims;
  int64_t row_bytes = 0;
  std::vector<int64_t> offsets;
};

// The result of requests `first` to `last`: `outputs` by the route's index, or `error` where not `executed`.
struct PartResult {
  size_t first = 0, last = 0;
  bool executed = false;
  std::vector<PartOutput> outputs;
  Ending error;
};

// Why tickets of Python's own ended without an execution; their numbers, and whether a batch still has them (staged).
enum class Ended : uint8_t { expired, stopping, failed };
constexpr Refused refused_as(Ended why) {
  return why == Ended::expired ? Refused::expired : why == Ended::stopping ? Refused::stopping : Refused::failed;
}
using OnEnded = std::function<void(const std::vector<std::pair<uint64_t, bool>>& tickets, Ended why)>;

struct QueueCounts {
  size_t waiting = 0;
  int64_t waiting_rows = 0;
  size_t open = 0;
};

// Requests of the fast lane that were not executed, by queue, since the last time they were asked for.
struct Refusals {
  uint64_t queue_full = 0, expired = 0, cancelled = 0, not_ready = 0;
};

// Since the start, of all versions. Bytes: what requests of the fast lane brought as tensors and were answered with, and how
// often those were copied on their way; `received` are pieces too small to be held where they arrived. Calls of ModelInfer by
// who answered them: the fast lane, or Python's handlers.
struct Traffic {
  uint64_t tensor_bytes_in = 0, received = 0, gathered = 0;
  uint64_t tensor_bytes_out = 0, encoded = 0;
  uint64_t fast = 0, handlers = 0;
};

// Requests by consumer, at most `most_consumers` of them; those of all others as one (requests.py, OTHER_CONSUMERS).
constexpr size_t most_consumers = 4000;
constexpr const char* other_consumers = "other";
using Uses = std::unordered_map<std::string, uint64_t>;

// The answer to an admitted message of a stream that failed.
Bytes error_of(const NativeTicket& ticket, std::string_view text);

// Thread-safe.
class Plane {
 public:
  Plane(uint64_t max_requests, uint64_t max_bytes, bool density);
  ~Plane();

  // `on_ended` is called from the timer's thread, from `take`, `close`, `fail` and `stop`, without the lock.
  void on_ended(OnEnded callback) { on_ended_ = std::move(callback); }
  void set_endings(const Endings& endings) { endings_ = endings; }

  // How many threads the device has been given, and how many it needs once it has a version of so many instances.
  std::pair<int, int> threads_for(const std::string& device, int slots, int instances);
  // Requests enter by the number of the first queue of their version, open still or not: `entrance`, its own for that one itself.
  // Throws std::invalid_argument if there is a queue of this id.
  void open(const std::string& device, const Rules& rules, uint64_t entrance);
  // With `move`, what waits is given to the queue's siblings, each ticket if one of them takes it.
  void close(uint64_t queue_id, bool move = false);
  // Closes a queue, and ends all of it that has yet to reach the device.
  void fail(uint64_t queue_id, const Ending& ending);
  bool wait_idle(uint64_t queue_id, double timeout_s);
  std::optional<QueueCounts> snapshot(uint64_t queue_id);
  void stop();

  // the doors' side: a ticket's `queue_id` is an entrance before, and a queue afterwards
  Entered submit(const Ref<Ticket>& ticket, bool wake);
  // All that arrived in one round, with their consumers, who are counted. `outcomes[i]` belongs to `tickets[i]`; those that
  // have ended meanwhile are passed over.
  void submit_all(const std::vector<Ref<NativeTicket>>& tickets, const std::vector<std::string>& consumers,
                  std::vector<Entered>& outcomes);
  // The state it was in, and where it had ended, why. One that was waiting is in nobody else's hands any more.
  std::pair<State, Refused> cancel(Ticket& ticket);
  void wake();
  void observe_delivery(int64_t took_ns);

  // the engine's side
  std::unique_ptr<Taken> take(const std::string& device);
  // Returns when it was taken, as the request's wait is to be counted.
  int64_t enter_device(Taken& taken);
  void leave_device(const Taken& taken);
  // Ends every ticket. `answered[i]`: whether its caller was still there. Answers of native tickets leave from here.
  void finish(Taken& taken, const std::vector<PartResult>& parts, const Execution& execution, int64_t ran_rows, int64_t took_ns,
              std::vector<uint8_t>& answered);

  // what the fast lane looks at, from any thread
  void publish(std::shared_ptr<const Routes> routes);
  std::shared_ptr<const Routes> routes() const;
  void set_fast(bool fast) { fast_.store(fast, std::memory_order_relaxed); }
  bool fast() const { return fast_.load(std::memory_order_relaxed); }
  const Endings& endings() const { return endings_; }

  // what the fast lane counts
  std::map<uint64_t, Uses> take_uses();
  std::map<uint64_t, Refusals> take_refusals();
  Traffic traffic() const;
  // A call of ModelInfer goes to Python's handlers.
  void left_to_handlers() { handlers_.fetch_add(1, std::memory_order_relaxed); }

 private:
  struct Device {
    Device(Estimate* delivery, int slots, bool density) : plan(delivery, slots, density) {}
    Plan plan;
    std::condition_variable changed, begins;
    int sleeping = 0;
    int threads = 0;
    std::unordered_map<uint64_t, std::vector<Ref<Ticket>>> staged;  // by the token of their batch, until it is entered
  };
  using Lock = std::unique_lock<std::mutex>;
  // Tickets that ended without an answer, and what is needed to say so once the lock is left. `in_batch`: a batch still reads
  // it, and lets go of it at its end. `executing`: the deadline of its call has passed meanwhile.
  struct Late {
    struct Entry {
      Ref<Ticket> ticket;
      Ref<Stream> stream;
      bool in_batch;
      bool executing;
      Bytes answer;  // of a stream's message, made while nobody else can let go of its request
    };
    std::vector<Entry> entries;
    Ended why;
    Ending ending;
  };

  Device& device(const std::string& name, int slots);
  Device* device_of(uint64_t queue_id);
  Entered enter(const Ref<Ticket>& ticket, int64_t now_ns);
  void end(Ticket& ticket);
  void end_late(Ref<Ticket> ticket, Late& late);
  Late late(Ended why) const;
  void leave(Device& device, const Taken& taken);
  void watch(const Ref<Ticket>& ticket);
  bool may_expire(const Ticket& ticket) const;
  bool is_watched(const Ticket& ticket) const;
  void expire_forever();
  void tell(Late& late);
  void count_use(uint64_t queue_id, const std::string& consumer);
  void wait(Lock& lock, std::condition_variable& changed, int64_t until_ns);

  mutable std::mutex mutex_;
  std::mutex stopping_mutex_;  // for the end of the timer's thread
  std::condition_variable idle_, timer_changed_;
  std::map<std::string, std::unique_ptr<Device>> devices_;
  std::unordered_map<uint64_t, Device*> by_queue_;
  std::unordered_map<uint64_t, Entrance> entrances_;
  std::unordered_map<uint64_t, uint64_t> entrance_of_;
  std::unordered_map<uint64_t, int> running_;
  Estimate delivery_;
  int64_t delivered_ns_ = 0;
  InflightLimit limit_;
  bool density_;
  bool stopped_ = false;
  std::vector<std::pair<int64_t, Ref<Ticket>>> deadlines_;  // a heap, the soonest first
  std::map<uint64_t, Refusals> refusals_;

  std::map<uint64_t, Uses> uses_;
  Traffic traffic_;
  // counted where the lock is not held
  std::atomic<uint64_t> handlers_{0}, encoded_{0}, tensor_bytes_out_{0};

  mutable std::mutex routes_mutex_;
  std::shared_ptr<const Routes> routes_;
  std::atomic<bool> fast_{false};
  Endings endings_;
  OnEnded on_ended_;
  std::thread timer_;
};

}  // namespace podium
