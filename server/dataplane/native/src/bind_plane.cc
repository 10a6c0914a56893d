// Plane and Taken as Python sees them: server/dataplane/native/plane.py is made of these.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bind_batch.h"
#include "bindings.h"
#include "bound_plane.h"
#include "interpreter.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace podium {
namespace {

// A request that Python decoded, while it is open.
struct Handle {
  Ref<Ticket> ticket;
};

constexpr const char* entry_names[] = {"admitted",          "queue_full",     "passed", "predicted",
                                       "too_many_requests", "too_many_bytes", "closed", "stopped"};

// Called without the interpreter, from threads of every kind.
OnEnded telling(nb::object callback) {
  return [callback = std::move(callback)](const std::vector<std::pair<uint64_t, bool>>& tickets, Ended why) {
    if (interpreter_ends()) return;  // nobody is left to be told
    // not by a guard: at the interpreter's end this thread may be ended in here, and has nothing to give back then
    PyGILState_STATE before = PyGILState_Ensure();
    try {
      callback(tickets, static_cast<int>(refused_as(why)));
    } catch (abi::__forced_unwind&) {
      throw;
    } catch (nb::python_error& error) {
      error.discard_as_unraisable(callback);
    } catch (const std::exception& error) {
      // no memory for its arguments, say: the timer goes on
      PyErr_SetString(PyExc_RuntimeError, error.what());
      PyErr_WriteUnraisable(callback.ptr());
    }
    PyGILState_Release(before);
  };
}

void open_queue(BoundPlane& plane, const std::string& device, uint64_t queue_id, std::vector<int64_t> buckets,
                std::vector<int64_t> costs_ns, int64_t max_batch, int64_t max_requests, int64_t queue_delay_ns, bool padding,
                bool early_drop, bool decoupled, int instances, double share, uint64_t entrance) {
  Rules rules;
  rules.queue_id = queue_id;
  rules.buckets = std::move(buckets);
  rules.costs_ns = std::move(costs_ns);
  rules.max_batch = max_batch;
  rules.max_requests = max_requests;
  rules.queue_delay_ns = queue_delay_ns;
  rules.padding = padding;
  rules.early_drop = early_drop;
  rules.decoupled = decoupled;
  rules.instances = instances;
  rules.share = share;
  plane.open(device, rules, entrance);
}

nb::tuple submit(BoundPlane& plane, uint64_t number, uint64_t entrance, nb::bytes shape, uint32_t rows, uint64_t nbytes,
                 uint64_t id_hash, int64_t arrival_ns, int64_t deadline_ns, int32_t priority, bool wake, uint32_t size_class) {
  Ref<Ticket> ticket = Ref<Ticket>::take(new PythonTicket(number));
  ticket->queue_id = entrance;
  ticket->shape.assign(shape.c_str(), shape.size());
  ticket->rows = rows;
  ticket->size_class = size_class;
  ticket->nbytes = nbytes;
  ticket->id_hash = id_hash;
  ticket->priority = priority;
  ticket->set_deadline(arrival_ns, deadline_ns);
  Entered entered = plane.submit(ticket, wake);
  return nb::make_tuple(Handle{std::move(ticket)}, entry_names[static_cast<size_t>(entered.outcome)], entered.ns,
                        entered.count);
}

// What serves: (model, the caller's version, its route) for every name.
void publish(BoundPlane& plane, const std::vector<std::tuple<std::string, std::string, BoundRoute>>& entries) {
  auto routes = std::make_shared<Routes>();
  for (const auto& [model, version, bound] : entries) routes->add(model, version, bound.route);
  plane.publish(std::move(routes));
}

nb::list take_uses(BoundPlane& plane) {
  nb::list made;
  for (const auto& [queue_id, uses] : plane.take_uses()) {
    for (const auto& [consumer, count] : uses) made.append(nb::make_tuple(queue_id, consumer, count));
  }
  return made;
}

nb::list take_refusals(BoundPlane& plane) {
  nb::list made;
  for (const auto& [queue_id, counts] : plane.take_refusals()) {
    made.append(nb::make_tuple(queue_id, counts.queue_full, counts.expired, counts.cancelled, counts.not_ready));
  }
  return made;
}

nb::dict copies(BoundPlane& plane) {
  Traffic traffic = plane.traffic();
  nb::dict made;
#define PODIUM_COUNT(name) made[#name] = traffic.name
  PODIUM_COUNT(tensor_bytes_in);
  PODIUM_COUNT(received);
  PODIUM_COUNT(gathered);
  PODIUM_COUNT(tensor_bytes_out);
  PODIUM_COUNT(encoded);
#undef PODIUM_COUNT
  return made;
}

nb::dict calls(BoundPlane& plane) {
  Traffic traffic = plane.traffic();
  nb::dict made;
  made["fast"] = traffic.fast;
  made["handlers"] = traffic.handlers;
  return made;
}

void set_endings(BoundPlane& plane, int overloaded, int expired, int stopping, bool pushback) {
  plane.set_endings(Endings{static_cast<Code>(overloaded), static_cast<Code>(expired), static_cast<Code>(stopping), pushback});
}

}  // namespace

void bind_plane(nb::module_& module) {
  using Free = nb::call_guard<WithoutInterpreter>;
  bind_batch(module);
  nb::class_<Handle>(module, "Handle", "A request that Python decoded.").def_prop_ro("queue_id", [](const Handle& handle) {
    return handle.ticket->queue_id;
  });
  nb::class_<BoundPlane>(module, "Plane", "Queues and batches behind one lock. Thread-safe.")
      .def(nb::init<uint64_t, uint64_t, bool>(), "max_requests"_a, "max_bytes"_a, "density"_a)
      .def(
          "on_ended", [](BoundPlane& plane, nb::object callback) { plane.on_ended(telling(std::move(callback))); },
          "callback"_a)
      .def("set_endings", &set_endings, "overloaded"_a, "expired"_a, "stopping"_a, "pushback"_a)
      .def("threads_for", &BoundPlane::threads_for, "device"_a, "slots"_a, "instances"_a)
      .def("open", &open_queue, "device"_a, "queue_id"_a, "buckets"_a, "costs_ns"_a, "max_batch"_a, "max_requests"_a,
           "queue_delay_ns"_a, "padding"_a, "early_drop"_a, "decoupled"_a, "instances"_a, "share"_a, "entrance"_a)
      .def("close", &BoundPlane::close, "queue_id"_a, "move"_a, Free())
      .def(
          "fail",
          [](BoundPlane& plane, uint64_t queue_id, int code, const std::string& text, const Metadata& trailing) {
            plane.fail(queue_id, Ending{static_cast<Code>(code), text, trailing});
          },
          "queue_id"_a, "code"_a, "text"_a, "trailing"_a, Free())
      .def("wait_idle", &BoundPlane::wait_idle, "queue_id"_a, "timeout_s"_a, Free())
      .def(
          "snapshot",
          [](BoundPlane& plane, uint64_t queue_id) -> std::optional<std::tuple<size_t, int64_t, size_t>> {
            std::optional<QueueCounts> counts = plane.snapshot(queue_id);
            if (!counts) return std::nullopt;
            return std::make_tuple(counts->waiting, counts->waiting_rows, counts->open);
          },
          "queue_id"_a)
      .def("stop", &BoundPlane::stop, Free())
      .def("submit", &submit, "number"_a, "entrance"_a, "shape"_a, "rows"_a, "nbytes"_a, "id_hash"_a, "arrival_ns"_a,
           "deadline_ns"_a, "priority"_a, "wake"_a, "size_class"_a = 0)
      .def(
          "cancel",
          [](BoundPlane& plane, Handle& handle) {
            auto [state, refused] = plane.cancel(*handle.ticket);
            return std::make_pair(static_cast<int>(state), static_cast<int>(refused));
          },
          "handle"_a)
      .def("wake", &BoundPlane::wake)
      .def("observe_delivery", &BoundPlane::observe_delivery, "took_ns"_a)
      .def(
          "take", [](BoundPlane& plane, const std::string& device) { return plane.take(device).release(); }, "device"_a,
          nb::rv_policy::take_ownership, Free())
      .def("enter_device", &BoundPlane::enter_device, "taken"_a, Free())
      .def("leave_device", &BoundPlane::leave_device, "taken"_a, Free())
      .def("finish", &finish_batch, "taken"_a, "parts"_a, "taken_ns"_a, "ran_ns"_a, "features_ns"_a, "lead_ns"_a, "rows"_a,
           "ran_rows"_a, "took_ns"_a)
      .def("publish", &publish, "entries"_a)
      .def("set_fast", &BoundPlane::set_fast, "fast"_a)
      .def("take_uses", &take_uses)
      .def("take_refusals", &take_refusals)
      .def("copies", &copies, "Bytes of tensors of the fast lane, and how many were copied, since the start.")
      .def("calls", &calls, "Calls of ModelInfer since the start, by who answered them: the fast lane, or Python's handlers.");
}

}  // namespace podium
