// Wire: decode and encode by themselves, for the differential test against codec.py and signature.py. Nothing serves with it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "bindings.h"
#include "infer_request.h"
#include "infer_response.h"
#include "padding.h"

namespace nb = nanobind;

namespace podium {

namespace {

// name, datatype, dims without the batch dimension, the sizes that its free ones are padded to, and an element of padding
using Spec = std::tuple<std::string, std::string, std::vector<int64_t>, std::vector<int64_t>, nb::bytes>;
// queue, execute, features (or none), rows, total: as Timing
using Times = std::tuple<int64_t, int64_t, std::optional<int64_t>, int64_t, int64_t>;

std::vector<TensorSpec> specs_of(const std::vector<Spec>& specs) {
  std::vector<TensorSpec> made;
  for (const auto& [name, datatype, dims, pad_to, padding] : specs) {
    auto found = std::find(std::begin(datatype_names), std::end(datatype_names), datatype);
    if (found == std::end(datatype_names)) throw std::invalid_argument("no such datatype: " + datatype);
    std::string element(padding.c_str(), padding.size());
    made.push_back(TensorSpec{name, static_cast<Datatype>(found - std::begin(datatype_names)), dims, false, pad_to, element});
  }
  return made;
}

nb::bytes bytes_of(const std::string& text) { return nb::bytes(text.data(), text.size()); }

class Wire {
 public:
  void add(const std::string& model, const std::string& version, const std::string& number, const std::vector<Spec>& inputs,
           const std::vector<Spec>& outputs, int64_t max_batch, const std::vector<uint64_t>& masks) {
    auto route = std::make_shared<Route>();
    route->model = model;
    route->version = number;
    route->inputs = specs_of(inputs);
    route->pad_sizes = pad_sizes(route->inputs);
    route->outputs = specs_of(outputs);
    route->max_batch = max_batch;
    route->masks = masks;
    route->answer = response_template(*route);
    routes_.add(model, version, std::move(route));
  }

  nb::object decode(const std::vector<nb::bytes>& pieces, bool compact) {
    Rope rope;
    for (const nb::bytes& piece : pieces) {
      // a slab of its own size each, so that a sanitizer sees who reads beyond it
      Ref<Slab> slab = Slab::make(piece.size());
      std::memcpy(slab->data(), piece.c_str(), piece.size());
      rope.append(slab, slab->data(), piece.size());
    }
    size_t size = rope.size(), count = rope.pieces().size();
    if (!decode_plain(rope, routes_, made_)) {
      if (rope.size() != size || rope.pieces().size() != count) throw std::logic_error("a refused message was changed");
      return nb::none();
    }
    if (compact) made_.compact();
    return described();
  }

  nb::bytes encode(const std::string& model, const std::string& version, const std::string& id,
                   const std::vector<std::tuple<uint16_t, std::vector<int64_t>, nb::object>>& outputs,
                   const std::optional<Times>& times, bool streamed) {
    const std::shared_ptr<const Route>* route = routes_.find(model, version);
    if (!route) throw std::invalid_argument("no such route");
    std::vector<OutputData> parts;
    Buffers buffers;
    for (const auto& [index, dims, data] : outputs) {
      if (index >= (*route)->outputs.size()) throw std::invalid_argument("no such output");
      const Py_buffer& buffer = buffers.open(data.ptr());
      parts.push_back(OutputData{index, dims.data(), dims.size(), static_cast<const uint8_t*>(buffer.buf),
                                 static_cast<size_t>(buffer.len)});
    }
    Timing timing;
    if (times) {
      const auto& [queue, execute, features, rows, total] = *times;
      timing = Timing{true, features.has_value(), queue, execute, features.value_or(0), rows, total};
    }
    size_t size = 0;
    Bytes made = encode_response(**route, id, parts, timing, &size, streamed);
    if (!made.size) throw std::length_error(std::to_string(size));
    return nb::bytes(made.data.get(), made.size);
  }

 private:
  // Memory of Python objects while it is read.
  class Buffers {
   public:
    const Py_buffer& open(PyObject* object) {
      auto buffer = std::make_unique<Py_buffer>();
      if (PyObject_GetBuffer(object, buffer.get(), PyBUF_SIMPLE)) throw nb::python_error();
      return *opened_.emplace_back(std::move(buffer));
    }
    ~Buffers() {
      for (auto& buffer : opened_) PyBuffer_Release(buffer.get());
    }

   private:
    std::vector<std::unique_ptr<Py_buffer>> opened_;
  };

  nb::dict described() const {
    nb::dict inputs;
    for (size_t i = 0; i < made_.inputs.size(); ++i) {
      if (!(made_.mask >> i & 1)) continue;
      const InputData& input = made_.inputs[i];
      std::string data(input.size, '\0'), same(input.size, '\0');
      made_.message.copy(input.mark, input.size, reinterpret_cast<uint8_t*>(data.data()));
      made_.message.copy(input.position, input.size, reinterpret_cast<uint8_t*>(same.data()));
      if (data != same) throw std::logic_error("an input's mark is not its position");
      nb::list dims;
      for (int64_t dim : input.dims) dims.append(dim);
      inputs[made_.route->inputs[i].name.c_str()] = nb::make_tuple(nb::tuple(dims), bytes_of(data), placed(i));
    }
    nb::dict made;
    made["version"] = made_.route->version;
    made["id"] = made_.id;
    made["inputs"] = inputs;
    made["mask"] = made_.mask;
    made["outputs"] = made_.outputs;
    made["rows"] = made_.rows;
    made["timeout_us"] = made_.timeout_us;
    made["priority"] = made_.priority;
    made["timing"] = made_.timing;
    made["shape"] = bytes_of(made_.shape);
    made["size_class"] = made_.size_class;
    return made;
  }

  // The rows of an input as a batch has them; as they came where they have no fixed size.
  nb::bytes placed(size_t index) const {
    const InputData& input = made_.inputs[index];
    const TensorSpec& spec = made_.route->inputs[index];
    size_t size = input.size;
    if (!spec.pad_to.empty()) {
      size = static_cast<size_t>(podium::bytes_of(spec, made_.rows, padded(spec, input.dims)));
    }
    // of its own size, so that a sanitizer sees who writes beyond it
    std::unique_ptr<uint8_t[]> rows(new uint8_t[size]);
    place(made_.message, input, spec, made_.rows, rows.get());
    return nb::bytes(rows.get(), size);
  }

  Routes routes_;
  PlainRequest made_;  // one for all, as a connection has it: nothing of one request may be left for the next
};

}  // namespace

void bind_wire(nb::module_& module) {
  nb::class_<Wire>(module, "Wire", "Decodes and encodes messages of the routes that were added. One thread's.")
      .def(nb::init<>())
      .def("add", &Wire::add, nb::arg("model"), nb::arg("version"), nb::arg("number"), nb::arg("inputs"), nb::arg("outputs"),
           nb::arg("max_batch"), nb::arg("masks"))
      .def("decode", &Wire::decode, nb::arg("pieces"), nb::arg("compact") = false)
      .def("encode", &Wire::encode, nb::arg("model"), nb::arg("version"), nb::arg("id"), nb::arg("outputs"),
           nb::arg("times").none() = nb::none(), nb::arg("streamed") = false)
      .def_static("error",
                  [](const std::string& text, const std::string& id, const std::string& model, const std::string& version) {
                    Bytes made = encode_error(text, id, model, version);
                    return nb::bytes(made.data.get(), made.size);
                  });
  module.def("shape_of", [](uint64_t mask, const std::vector<std::vector<int64_t>>& dims) {
    std::vector<const std::vector<int64_t>*> each;
    for (const std::vector<int64_t>& one : dims) each.push_back(&one);
    return bytes_of(shape_of(mask, each));
  });
}

}  // namespace podium
