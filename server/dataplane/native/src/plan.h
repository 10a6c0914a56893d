// Which tickets run next on a device: server/dataplane/plan.py, rule for rule. Pure: no lock, no clock, no thread.
//
// plan.py is the oracle. A property test feeds both the same histories; change that file first, and this one to match.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "costs.h"
#include "lanes.h"
#include "ticket.h"

namespace podium {

// Why a batch was closed; why a ticket was not admitted. Names as in Python.
enum class Reason : uint8_t { full, too_large, delay, drained };
enum class Admission : uint8_t { admitted, queue_full, passed, predicted };

struct Admitted {
  Admission outcome;
  // queue_full: how long what waits takes (0: not known). predicted: how much after its deadline it would finish.
  int64_t ns;
};

// Tickets that run now, as one batch, or next if `staged`. `token` names it until `executed`, and `queue` lives as long.
struct Release {
  Queue* queue;
  std::vector<Ref<Ticket>> tickets;
  int64_t rows;
  Reason reason;
  uint64_t token;
  bool staged;
};

// What to do now. `late` are tickets to refuse.
struct Decision {
  std::vector<Ref<Ticket>> late;
  std::unique_ptr<Release> release;        // or none
  int64_t wait_until_ns = no_deadline_ns;  // no_deadline_ns: until the next arrival
};

// The queues of one device. Ownership: the data plane, under its lock. It holds a reference to every ticket that waits.
class Plan {
 public:
  // `delivery` estimates how long answers need from the end of an execution until they have left; it must outlive the plan.
  // `slots` 2: the next batch is gathered while one runs; 3: and the answers of the one before are dealt out meanwhile.
  Plan(Estimate* delivery, int slots, bool density);

  // How many engine threads the device can use, once it has a version of so many instances.
  int threads_with(int instances) const;
  size_t waiting() const;
  int executors() const;
  // Throws std::invalid_argument if the id is taken, or its rules cannot be planned with.
  Queue* add_queue(const Rules& rules);
  // Throws std::out_of_range if there is none, std::invalid_argument if tickets wait in it. What runs of it may still end.
  void remove_queue(uint64_t queue_id);
  Queue* queue(uint64_t queue_id);  // nullptr if there is none

  // Lets a ticket wait in its queue; unless admitted, nothing has changed and the reference is gone. The ticket's rows must fit
  // the queue's largest bucket, and its size class must have costs: std::out_of_range if not, or if there is no queue of its id.
  Admitted admit(Ref<Ticket> ticket, int64_t now_ns);
  // The same for those who have looked the queue up already.
  Admitted admit(Queue& queue, Ref<Ticket>&& ticket, int64_t now_ns);
  // When a ticket would be executed, were it admitted now; none where that is not known. Throws as `admit` does.
  std::optional<int64_t> finish_ns(Queue& queue, const Ticket& ticket, int64_t now_ns);
  // Takes a waiting ticket out. It no longer waits, but is open until it has its answer. Throws std::out_of_range if it does
  // not wait. The plan's reference is dropped, so the caller needs one.
  void withdraw(Ticket& ticket);
  // What the device should do now. Taken and late tickets have left their lanes when this returns.
  Decision decide(int64_t now_ns);
  // Whether an executor of a device with a second slot has nothing to do though another thread is about to change that.
  bool stands_still(bool takers) const;
  // Staged batches that may run now, and whose threads have yet to notice.
  int beginning() const;
  // The next three throw std::out_of_range where no batch of this token runs. A batch goes to the device.
  void enter(uint64_t token);
  // Whether a staged batch may run now.
  bool may_begin(uint64_t token) const;
  // A staged batch runs from now on; gathering it took `gather_ns`.
  void begin(uint64_t token, int64_t now_ns, int64_t gather_ns);
  // A batch has left the device. Idempotent.
  void executed(uint64_t token, int64_t now_ns);
  // Learn from a batch that has ended now. Throws std::out_of_range without such a queue, or beyond its largest bucket or class.
  void observe(uint64_t queue_id, size_t size_class, int64_t rows, int64_t took_ns, int64_t features_ns, int64_t now_ns);
  // Every waiting ticket, for a plane that stops.
  std::vector<Ref<Ticket>> all_waiting() const;
  // How long gathering takes.
  Estimate& staging();

 private:
  // A batch that began at `begun_ns` and takes about `took_ns`; one that is staged has yet to begin. A removed queue lives on
  // until its last batch has ended.
  struct Running {
    uint64_t token;
    std::shared_ptr<Queue> queue;
    int64_t took_ns;
    int64_t begun_ns;
    bool staged;
    bool entered;

    int64_t until_ns() const { return plus(begun_ns, took_ns); }
  };
  struct Prediction {
    int64_t finish_ns;
    int64_t rows;
  };
  struct Choice {
    Lane* lane;
    int64_t wake_ns;
  };

  void count_executors();
  Running& running(uint64_t token);
  const Running& running(uint64_t token) const;
  int executing() const;
  bool may_begin(const Running& staged, int executing) const;
  int beginning(int executing) const;
  const std::vector<int64_t>& free_at_ns(int64_t now_ns);
  int64_t ahead_ns(Queue& queue, const Lane* lane, const Key& key, int64_t now_ns);
  Prediction predict_finish(Queue& queue, const Lane* lane, size_t before, const Key& key, const Ticket& ticket,
                            int64_t now_ns);
  bool must_wait_to_stage(int64_t now_ns, bool* staged, int64_t* wait_until_ns) const;
  Choice next_lane(int64_t now_ns, bool staged);
  bool overloaded(int64_t now_ns) const;
  std::unique_ptr<Release> fill(Lane& lane, int64_t now_ns, std::vector<Ref<Ticket>>& late, bool staged);
  bool drop_late(Lane& lane, const Prefix& batch, int64_t finish_ns, int64_t now_ns, std::vector<Ref<Ticket>>& late);
  void left(Lane& lane, size_t tickets, int64_t rows);

  Estimate* delivery_;
  int slots_;
  bool density_;
  int executors_ = 1;
  Estimate staging_;
  uint64_t arrivals_ = 0;
  uint64_t tokens_ = 0;
  size_t waiting_ = 0;
  std::vector<std::shared_ptr<Queue>> queues_;  // in the order in which they were added, as in Python's dict
  std::unordered_map<uint64_t, Queue*> by_id_;
  std::vector<Running> running_;  // in the order of tokens; no more than executors and slots
  // only their memory is kept from call to call
  std::vector<int64_t> free_;
  std::vector<Lane*> ripe_;
};

}  // namespace podium
