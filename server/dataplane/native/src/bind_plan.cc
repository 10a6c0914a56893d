// The plan and the limit as Python sees them: for the tests that hold them against server/dataplane/plan.py and limit.py.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "bindings.h"
#include "limit.h"
#include "plan.h"

namespace nb = nanobind;

namespace podium {

namespace {

constexpr const char* reasons[] = {"full", "too_large", "delay", "drained"};
constexpr const char* admissions[] = {"admitted", "queue_full", "passed", "predicted"};
constexpr const char* entries[] = {"entered", "too_many_requests", "too_many_bytes"};

using Numbers = std::vector<uint64_t>;
// queue_id, tickets, rows, reason, token, staged
using Released = std::tuple<uint64_t, Numbers, int64_t, const char*, uint64_t, bool>;
using Decided = std::tuple<Numbers, std::optional<Released>, std::optional<int64_t>>;

// A ticket that Python knows by a number of its own.
class Numbered final : public Ticket {
 public:
  uint64_t tag = 0;
};

Numbers tags(const std::vector<Ref<Ticket>>& tickets) {
  Numbers made;
  for (const auto& one : tickets) made.push_back(static_cast<Numbered&>(*one).tag);
  return made;
}

// One plan with its delivery and its tickets. Single-threaded, under the interpreter's lock.
class PlanForPython {
 public:
  PlanForPython(int slots, bool density) : plan_(&delivery_, slots, density) {}

  void add_queue(uint64_t queue_id, std::vector<int64_t> buckets, std::vector<int64_t> costs_ns, int64_t max_batch,
                 int64_t max_requests, int64_t queue_delay_ns, bool padding, bool early_drop, bool decoupled, int instances,
                 double share) {
    plan_.add_queue(Rules{queue_id, std::move(buckets), std::move(costs_ns), max_batch, max_requests, queue_delay_ns, padding,
                          early_drop, decoupled, instances, share});
  }

  std::pair<const char*, int64_t> admit(uint64_t tag, uint64_t queue_id, const std::string& shape, uint32_t rows,
                                        int64_t arrival_ns, int64_t deadline_ns, int32_t priority, int64_t now_ns,
                                        uint32_t size_class) {
    Ref<Numbered> made = Ref<Numbered>::take(new Numbered);
    made->tag = tag;
    made->queue_id = queue_id;
    made->shape = shape;
    made->rows = rows;
    made->size_class = size_class;
    made->priority = priority;
    made->set_deadline(arrival_ns, deadline_ns);
    Admitted admitted = plan_.admit(Ref<Ticket>(*made), now_ns);
    if (admitted.outcome == Admission::admitted) tickets_[tag] = made;
    return {admissions[static_cast<int>(admitted.outcome)], admitted.ns};
  }

  void withdraw(uint64_t tag) { plan_.withdraw(*tickets_.at(tag)); }

  Decided decide(int64_t now_ns) {
    Decision decision = plan_.decide(now_ns);
    std::optional<Released> released;
    if (decision.release) {
      const Release& one = *decision.release;
      const char* reason = reasons[static_cast<int>(one.reason)];
      released.emplace(one.queue->rules.queue_id, tags(one.tickets), one.rows, reason, one.token, one.staged);
    }
    std::optional<int64_t> wait_until_ns;
    if (decision.wait_until_ns < no_deadline_ns) wait_until_ns = decision.wait_until_ns;
    return {tags(decision.late), released, wait_until_ns};
  }

  // waiting, open and running of a queue, and its waiting rows
  std::tuple<int64_t, int64_t, int, int64_t> counts(uint64_t queue_id) {
    const Queue& queue = known(queue_id);
    return {queue.waiting, queue.open, queue.running, queue.waiting_rows()};
  }

  // Its lanes in their order: rows, and tickets in theirs.
  std::vector<std::pair<int64_t, Numbers>> lanes(uint64_t queue_id) {
    std::vector<std::pair<int64_t, Numbers>> made;
    for (const Lane* lane = known(queue_id).first_lane; lane; lane = lane->next) {
      Numbers numbers;
      for (const Waiter& waiter : lane->line) numbers.push_back(static_cast<Numbered*>(waiter.ticket)->tag);
      made.emplace_back(lane->rows, numbers);
    }
    return made;
  }

  // Per size class and bucket the predicted time and whether it is on trial.
  std::vector<std::pair<int64_t, bool>> predictions(uint64_t queue_id, int64_t now_ns) {
    std::vector<std::pair<int64_t, bool>> made;
    for (const CostModel& costs : known(queue_id).costs) {
      for (int64_t rows : costs.buckets()) made.emplace_back(costs.predict_ns(rows), costs.on_trial(rows, now_ns));
    }
    return made;
  }

  Queue& known(uint64_t queue_id) {
    Queue* found = plan_.queue(queue_id);
    if (!found) throw std::out_of_range("no queue of this id");
    return *found;
  }

  Estimate delivery_;
  Plan plan_;

 private:
  std::unordered_map<uint64_t, Ref<Numbered>> tickets_;
};

void bind_limit(nb::module_& module) {
  nb::class_<InflightLimit>(module, "InflightLimit")
      .def(nb::init<uint64_t, uint64_t>(), nb::arg("max_requests"), nb::arg("max_bytes"))
      .def("enter", [](InflightLimit& self, uint64_t nbytes) { return entries[static_cast<int>(self.enter(nbytes))]; })
      .def("leave", &InflightLimit::leave)
      .def_prop_ro("requests", &InflightLimit::requests)
      .def_prop_ro("bytes", &InflightLimit::bytes);
}

// What plan.py's own tests reach into: they teach its estimates by hand.
void bind_inside(nb::class_<PlanForPython>& bound) {
  using P = PlanForPython;
  bound.def("counts", &P::counts)
      .def("lanes", &P::lanes)
      .def("predictions", &P::predictions)
      .def("lead_ns", [](P& self, uint64_t queue_id) { return self.known(queue_id).lead.predict_ns(); })
      .def("share_left_ns", [](P& self, uint64_t queue_id) { return self.known(queue_id).share.left_ns(); })
      .def("staging_ns", [](P& self) { return self.plan_.staging().predict_ns(); })
      .def("staging_observe", [](P& self, int64_t took_ns) { self.plan_.staging().observe(took_ns); })
      .def("delivery_ns", [](P& self) { return self.delivery_.predict_ns(); })
      .def("all_waiting", [](P& self) { return tags(self.plan_.all_waiting()); })
      .def("costs_observe", [](P& self, uint64_t queue_id, size_t size_class, int64_t rows, int64_t took_ns,
                               int64_t now_ns) { self.known(queue_id).costs.at(size_class).observe(rows, took_ns, now_ns); })
      .def("costs_refused", [](P& self, uint64_t queue_id, size_t size_class, int64_t rows, int64_t now_ns) {
        self.known(queue_id).costs.at(size_class).refused(rows, now_ns);
      });
}

}  // namespace

void bind_plan(nb::module_& module) {
  using P = PlanForPython;
  nb::class_<P> bound(module, "Plan");
  bound.def(nb::init<int, bool>(), nb::arg("slots") = 1, nb::arg("density") = false)
      .def("add_queue", &P::add_queue, nb::arg("queue_id"), nb::arg("buckets"), nb::arg("costs_ns"), nb::arg("max_batch"),
           nb::arg("max_requests"), nb::arg("queue_delay_ns"), nb::arg("padding"), nb::arg("early_drop"), nb::arg("decoupled"),
           nb::arg("instances"), nb::arg("share"))
      .def("remove_queue", [](P& self, uint64_t queue_id) { self.plan_.remove_queue(queue_id); })
      .def("admit", &P::admit, nb::arg("tag"), nb::arg("queue_id"), nb::arg("shape"), nb::arg("rows"), nb::arg("arrival_ns"),
           nb::arg("deadline_ns"), nb::arg("priority"), nb::arg("now_ns"), nb::arg("size_class") = 0)
      .def("withdraw", &P::withdraw)
      .def("decide", &P::decide)
      .def("enter", [](P& self, uint64_t token) { self.plan_.enter(token); })
      .def("may_begin", [](P& self, uint64_t token) { return self.plan_.may_begin(token); })
      .def("begin", [](P& self, uint64_t token, int64_t now, int64_t gather_ns) { self.plan_.begin(token, now, gather_ns); })
      .def("executed", [](P& self, uint64_t token, int64_t now) { self.plan_.executed(token, now); })
      .def(
          "observe",
          [](P& self, uint64_t queue_id, int64_t rows, int64_t took_ns, int64_t features_ns, int64_t now, size_t size_class) {
            self.plan_.observe(queue_id, size_class, rows, took_ns, features_ns, now);
          },
          nb::arg("queue_id"), nb::arg("rows"), nb::arg("took_ns"), nb::arg("features_ns"), nb::arg("now_ns"),
          nb::arg("size_class") = 0)
      .def("observe_delivery", [](P& self, int64_t took_ns) { self.delivery_.observe(took_ns); })
      .def("threads_with", [](P& self, int instances) { return self.plan_.threads_with(instances); })
      .def("stands_still", [](P& self, bool takers) { return self.plan_.stands_still(takers); })
      .def_prop_ro("waiting", [](P& self) { return self.plan_.waiting(); })
      .def_prop_ro("executors", [](P& self) { return self.plan_.executors(); })
      .def_prop_ro("beginning", [](P& self) { return self.plan_.beginning(); });
  bind_inside(bound);
  bind_limit(module);
}

}  // namespace podium
