// A batch between C++ and Python: rows gathered into arrays that Python provides, results scattered from its arrays.
#include "bind_batch.h"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <stdexcept>

#include "buffer.h"
#include "infer_response.h"
#include "interpreter.h"
#include "padding.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace podium {
namespace {

// Below this many bytes, letting go of the interpreter and taking it again costs more than the copying.
constexpr size_t worth_releasing = 1 << 16;
constexpr const char* reason_names[] = {"full", "too_large", "delay", "drained"};

// name, datatype, dims, optional, sizes that free dims are padded to, the bytes of one element of padding
using Tensor = std::tuple<std::string, std::string, std::vector<int64_t>, bool, std::vector<int64_t>, nb::bytes>;

TensorSpec spec_of(const Tensor& tensor) {
  const auto& [name, datatype, dims, optional, pad_to, padding] = tensor;
  for (size_t index = 0; index < std::size(datatype_names); ++index) {
    if (datatype != datatype_names[index]) continue;
    std::string element(padding.c_str(), padding.size());
    if (!pad_to.empty() && (element.empty() || element.size() != static_cast<size_t>(item_sizes[index]))) {
      throw std::invalid_argument("padding of '" + name + "' is one element of its datatype");
    }
    return TensorSpec{name, static_cast<Datatype>(index), dims, optional, pad_to, std::move(element)};
  }
  throw std::invalid_argument("no datatype is called '" + datatype + "'");
}

BoundRoute make_route(uint64_t entrance, const std::string& model, const std::string& version,
                      const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs, int64_t max_batch,
                      std::vector<uint64_t> masks, int64_t default_timeout_us, bool allow_timeout_override, int priority_levels,
                      int default_priority, bool has_features) {
  Route route;
  route.entrance = entrance;
  route.model = model;
  route.version = version;
  for (const Tensor& tensor : inputs) route.inputs.push_back(spec_of(tensor));
  for (const Tensor& tensor : outputs) route.outputs.push_back(spec_of(tensor));
  route.pad_sizes = pad_sizes(route.inputs);
  route.max_batch = max_batch;
  route.masks = std::move(masks);
  route.default_timeout_us = default_timeout_us;
  route.allow_timeout_override = allow_timeout_override;
  route.priority_levels = priority_levels;
  route.default_priority = default_priority;
  route.has_features = has_features;
  route.answer = response_template(route);
  return BoundRoute{std::make_shared<const Route>(std::move(route))};
}

const NativeTicket* native(const Ref<Ticket>& ticket) {
  return ticket->native ? static_cast<const NativeTicket*>(ticket.get()) : nullptr;
}

// The number of each ticket that Python decoded, by its place in the batch.
std::vector<std::pair<size_t, uint64_t>> numbers(const Taken& taken) {
  std::vector<std::pair<size_t, uint64_t>> made;
  for (size_t index = 0; index < taken.tickets.size(); ++index) {
    const Ref<Ticket>& ticket = taken.tickets[index];
    if (!ticket->native) made.emplace_back(index, static_cast<const PythonTicket&>(*ticket).python_number);
  }
  return made;
}

// Shapes: spans int64 [B + 1], the others 64 bits each [B].
void describe(const Taken& taken, nb::handle spans, nb::handle arrival_ns, nb::handle deadline_ns, nb::handle id_hashes) {
  Buffer into(spans, true), arrivals(arrival_ns, true), deadlines(deadline_ns, true), hashes(id_hashes, true);
  size_t count = taken.tickets.size();
  if (into.size() != 8 * (count + 1) || arrivals.size() != 8 * count || deadlines.size() != 8 * count ||
      hashes.size() != 8 * count) {
    throw std::invalid_argument("the arrays of a batch have a place for each of its requests");
  }
  auto* span = reinterpret_cast<int64_t*>(into.data());
  auto* arrival = reinterpret_cast<int64_t*>(arrivals.data());
  auto* deadline = reinterpret_cast<int64_t*>(deadlines.data());
  auto* hash = reinterpret_cast<uint64_t*>(hashes.data());
  *span = 0;
  for (size_t index = 0; index < count; ++index) {
    const Ticket& ticket = *taken.tickets[index];
    span[index + 1] = span[index] + ticket.rows;
    arrival[index] = ticket.arrival_ns;
    deadline[index] = ticket.deadline_ns;
    hash[index] = ticket.id_hash;
  }
}

// The inputs that the batch's requests bring, by the route's index, and their dims behind the rows, padded; None where all of
// them were decoded by Python. (All of a batch are of one shape then.)
nb::object layout(const Taken& taken) {
  for (const Ref<Ticket>& ticket : taken.tickets) {
    const NativeTicket* its = native(ticket);
    if (!its) continue;
    nb::list made;
    for (size_t index = 0; index < its->request.inputs.size(); ++index) {
      if (!(its->request.mask >> index & 1)) continue;
      nb::list dims;
      for (int64_t dim : padded(its->request.route->inputs[index], its->request.inputs[index].dims)) dims.append(dim);
      made.append(nb::make_tuple(index, nb::tuple(dims)));
    }
    return made;
  }
  return nb::none();
}

// The rows of one request's input among all rows in `target`. Returns the bytes that it brought of them.
size_t put(const NativeTicket& ticket, size_t input, size_t row, const Buffer& target) {
  const InputData& data = ticket.request.inputs[input];
  const TensorSpec& spec = ticket.request.route->inputs[input];
  int64_t rows = ticket.rows, bytes = static_cast<int64_t>(data.size);
  if (!spec.pad_to.empty()) bytes = bytes_of(spec, rows, padded(spec, data.dims));
  if (bytes < 0) throw std::out_of_range("the rows do not fit any array");
  size_t whole = static_cast<size_t>(bytes), first = whole / ticket.rows * row;
  if (first + whole > target.size()) throw std::out_of_range("the rows do not fit the array");
  place(ticket.request.message, data, spec, rows, target.data() + first);
  return data.size;
}

// The rows of all requests that were decoded here, each at its place. `into`: (input, array of all rows).
// Returns how many elements they brought in inputs whose free dimensions are padded.
int64_t gather(Taken& taken, const std::vector<std::pair<size_t, nb::object>>& into) {
  std::vector<std::pair<size_t, Buffer>> targets;
  size_t total = 0;
  int64_t padded_elements = 0;
  for (const auto& [input, array] : into) {
    targets.emplace_back(input, Buffer(array, true));
    total += targets.back().second.size();
  }
  auto copy = [&] {
    for (const auto& [input, target] : targets) {
      size_t row = 0;
      for (const Ref<Ticket>& ticket : taken.tickets) {
        if (const NativeTicket* its = native(ticket)) {
          size_t bytes = put(*its, input, row, target);
          taken.gathered_bytes += bytes;
          const TensorSpec& spec = its->request.route->inputs[input];
          if (!spec.pad_to.empty()) padded_elements += static_cast<int64_t>(bytes / spec.pad_element.size());
        }
        row += ticket->rows;
      }
    }
  };
  if (total < worth_releasing) {
    copy();
  } else {
    WithoutInterpreter interpreter;
    copy();
  }
  return padded_elements;
}

// Of an input of BYTES: per request that was decoded here its first row and its elements.
nb::list elements(Taken& taken, size_t input) {
  nb::list made;
  size_t row = 0;
  std::vector<uint8_t> raw;
  for (const Ref<Ticket>& ticket : taken.tickets) {
    if (const NativeTicket* its = native(ticket)) {
      const InputData& data = its->request.inputs[input];
      raw.resize(data.size);
      its->request.message.copy(data.mark, data.size, raw.data());
      taken.gathered_bytes += 2 * data.size;  // here, and into the elements
      nb::list items;
      for (size_t at = 0; at + 4 <= raw.size();) {
        uint32_t length;
        std::memcpy(&length, raw.data() + at, 4);
        at += 4;
        if (length > raw.size() - at) throw std::out_of_range("an element runs past its tensor");
        items.append(nb::bytes(raw.data() + at, length));
        at += length;
      }
      made.append(nb::make_tuple(row, ticket->rows, items));
    }
    row += ticket->rows;
  }
  return made;
}

PartOutput output_of(nb::handle given, std::vector<Buffer>& held) {
  PartOutput made;
  if (given.is_none()) return made;
  made.there = true;
  if (nb::isinstance<nb::tuple>(given)) {
    nb::tuple parts = nb::cast<nb::tuple>(given);
    held.emplace_back(parts[0], false);
    made.offsets = nb::cast<std::vector<int64_t>>(parts[1]);
    made.dims = nb::cast<std::vector<int64_t>>(parts[2]);
  } else {
    held.emplace_back(given, false);
    const Py_buffer& view = held.back().view();
    made.dims.assign(view.shape, view.shape + view.ndim);
    made.row_bytes = view.itemsize;
    for (int axis = 1; axis < view.ndim; ++axis) made.row_bytes *= view.shape[axis];
  }
  made.data = held.back().data();
  made.size = held.back().size();
  return made;
}

}  // namespace

nb::bytes finish_batch(BoundPlane& plane, Taken& taken, nb::list parts, int64_t taken_ns, int64_t ran_ns, int64_t features_ns,
                       int64_t lead_ns, int64_t rows, int64_t ran_rows, int64_t took_ns) {
  std::vector<PartResult> results;
  std::vector<Buffer> held;
  for (nb::handle part : parts) {
    nb::tuple given = nb::cast<nb::tuple>(part);
    PartResult made;
    made.first = nb::cast<size_t>(given[0]);
    made.last = nb::cast<size_t>(given[1]);
    if (!given[2].is_none()) {
      made.executed = true;
      for (nb::handle output : nb::cast<nb::list>(given[2])) made.outputs.push_back(output_of(output, held));
    } else {
      nb::tuple error = nb::cast<nb::tuple>(given[3]);
      made.error.code = static_cast<Code>(nb::cast<int>(error[0]));
      made.error.text = nb::cast<std::string>(error[1]);
      made.error.trailing = nb::cast<std::vector<std::pair<std::string, std::string>>>(error[2]);
    }
    results.push_back(std::move(made));
  }
  Execution execution{taken_ns, ran_ns, features_ns, lead_ns, rows};
  std::vector<uint8_t> answered;
  {
    WithoutInterpreter interpreter;
    plane.finish(taken, results, execution, ran_rows, took_ns, answered);
  }
  return nb::bytes(answered.data(), answered.size());
}

void bind_batch(nb::module_& module) {
  nb::class_<BoundRoute>(module, "Route", "One version that the fast lane answers for. Immutable.")
      .def(nb::new_(&make_route), "entrance"_a, "model"_a, "version"_a, "inputs"_a, "outputs"_a, "max_batch"_a, "masks"_a,
           "default_timeout_us"_a, "allow_timeout_override"_a, "priority_levels"_a, "default_priority"_a, "has_features"_a);
  nb::class_<Taken>(module, "Taken", "Requests that run together, from take to finish.")
      .def_ro("queue_id", &Taken::queue_id)
      .def_ro("rows", &Taken::rows)
      .def_ro("staged", &Taken::staged)
      .def_ro("taken_ns", &Taken::taken_ns)
      .def_prop_ro("requests", [](const Taken& taken) { return taken.tickets.size(); })
      .def_prop_ro("reason", [](const Taken& taken) { return reason_names[static_cast<size_t>(taken.reason)]; })
      .def("numbers", &numbers)
      .def("describe", &describe, "spans"_a, "arrival_ns"_a, "deadline_ns"_a, "id_hashes"_a)
      .def("layout", &layout)
      .def("gather", &gather, "into"_a)
      .def("elements", &elements, "input"_a);
  module.def(
      "shape_of",
      [](uint64_t mask, const std::vector<std::vector<int64_t>>& dims) {
        std::vector<const std::vector<int64_t>*> each;
        for (const auto& its : dims) each.push_back(&its);
        std::string made = shape_of(mask, each);
        return nb::bytes(made.data(), made.size());
      },
      "mask"_a, "dims"_a, "The lane of a request: which inputs it brings (bits), and their dims behind the rows, in order.");
}

}  // namespace podium
