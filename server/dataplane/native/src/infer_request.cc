// The message against its version: the same rules as `check` of server/core/signature.py.
#include "infer_request.h"

#include <utility>

#include "infer_request_parts.h"
#include "padding.h"

namespace podium {

namespace {

using wire::Reader;
using wire::Span;
using wire::Tensor;

// Shapes of empty tensors may name any number. Those that memory would not hold are for Python, whose arrays may refuse them.
constexpr uint64_t most_empty_elements = uint64_t{1} << 36;

// Elements that were put together, to go behind the message once all of it is known to be well.
struct Made {
  size_t input;
  Ref<Slab> slab;
  size_t size;
};

// Callers name tensors in the model's order as a rule, so the first look is the last.
size_t index_of(const std::vector<TensorSpec>& specs, std::string_view name, size_t guess) {
  if (guess < specs.size() && specs[guess].name == name) return guess;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].name == name) return i;
  }
  return specs.size();
}

// Rank and dims, and how many elements that makes.
bool shape_fits(const Tensor& tensor, const TensorSpec& spec, int64_t max_batch, uint64_t& count) {
  size_t batch = max_batch ? 1 : 0;
  if (spec.dims.size() > Dims::most || tensor.dims_count != spec.dims.size() + batch) return false;
  uint64_t without_zeros = 1;
  bool empty = false;
  for (size_t i = 0; i < tensor.dims_count; ++i) {
    int64_t dim = tensor.dims[i];
    if (dim < 0) return false;
    if (i >= batch && spec.dims[i - batch] != -1 && spec.dims[i - batch] != dim) return false;
    if (i >= batch && spec.dims[i - batch] == -1 && !spec.pad_to.empty() && dim > spec.pad_to.back()) return false;
    if (!dim) {
      empty = true;
    } else if (__builtin_mul_overflow(without_zeros, static_cast<uint64_t>(dim), &without_zeros)) {
      return false;
    }
  }
  count = empty ? 0 : without_zeros;
  if (!empty) return true;
  uint64_t with_others;  // the rows of other requests beside it
  return !__builtin_mul_overflow(without_zeros, static_cast<uint64_t>(max_batch ? max_batch : 1), &with_others) &&
         with_others <= most_empty_elements;
}

// Lengths and elements, exactly as many as the shape has.
bool texts_fit(Reader reader, uint64_t count) {
  uint64_t found = 0;
  for (; reader.left(); ++found) {
    uint32_t length;
    if (found == count || reader.left() < sizeof length) return false;
    reader.copy(sizeof length, reinterpret_cast<uint8_t*>(&length));
    if (length > reader.left()) return false;
    reader.skip(length);
  }
  return found == count;
}

// Any byte is true that is not zero: Python writes those as 1.
bool bools_fit(Reader reader) {
  while (size_t left = reader.left()) {
    uint8_t all = 0;
    for (char byte : reader.chunk(left)) all |= static_cast<uint8_t>(byte);
    if (all > 1) return false;
  }
  return true;
}

bool data_fits(const Rope& rope, const Tensor& tensor, Datatype datatype, uint64_t count, Span& data, Made& made) {
  data = tensor.data;
  if (tensor.typed) {
    if (!wire::read_typed(rope, datatype, count, data, made.slab, made.size)) return false;
    if (made.slab) data.size = made.size;
    return true;
  }
  uint64_t bytes;
  auto item = static_cast<uint64_t>(item_sizes[static_cast<size_t>(datatype)]);
  if (item && (__builtin_mul_overflow(count, item, &bytes) || bytes != data.size)) return false;
  if (datatype != Datatype::BYTES && datatype != Datatype::BOOL) return true;
  Reader reader(rope, data.mark, data.position, data.size);
  return datatype == Datatype::BOOL ? bools_fit(std::move(reader)) : texts_fit(std::move(reader), count);
}

bool read_rows(const wire::Request& request, int64_t max_batch, int64_t& rows) {
  rows = 1;
  if (!max_batch) return true;
  for (size_t i = 0; i < request.inputs_count; ++i) {
    const Tensor& tensor = request.inputs[i];
    if (!tensor.dims_count || (i && tensor.dims[0] != rows)) return false;
    rows = tensor.dims[0];
  }
  return rows >= 1 && rows <= max_batch;
}

bool fit_inputs(const Rope& rope, const wire::Request& request, const Route& route, PlainRequest& made,
                std::vector<Made>& typed) {
  if (route.inputs.size() > wire::max_tensors || !read_rows(request, route.max_batch, made.rows)) return false;
  made.inputs.resize(route.inputs.size());
  for (size_t i = 0; i < request.inputs_count; ++i) {
    const Tensor& tensor = request.inputs[i];
    size_t index = index_of(route.inputs, tensor.name, i);
    if (index == route.inputs.size() || made.mask >> index & 1) return false;
    made.mask |= uint64_t{1} << index;
    const TensorSpec& spec = route.inputs[index];
    uint64_t count;
    if (tensor.datatype != datatype_names[static_cast<size_t>(spec.datatype)]) return false;
    if (!shape_fits(tensor, spec, route.max_batch, count)) return false;
    Span data;
    Made put_together{index, {}, 0};
    if (!data_fits(rope, tensor, spec.datatype, count, data, put_together)) return false;
    size_t batch = route.max_batch ? 1 : 0;
    made.inputs[index] = InputData{data.position, data.size, Dims(tensor.dims + batch, tensor.dims_count - batch), data.mark};
    if (put_together.slab) typed.push_back(std::move(put_together));
  }
  for (uint64_t mask : route.masks) {
    if (mask == made.mask) return true;
  }
  return false;
}

bool fit_outputs(const wire::Request& request, const Route& route, PlainRequest& made) {
  uint64_t seen = 0;
  for (size_t i = 0; i < request.outputs_count; ++i) {
    size_t index = index_of(route.outputs, request.outputs[i], i);
    if (index == route.outputs.size() || index >= wire::max_tensors || seen >> index & 1) return false;
    seen |= uint64_t{1} << index;
    made.outputs.push_back(static_cast<uint16_t>(index));
  }
  return true;
}

void put_number(std::string& target, uint64_t value) {
  uint8_t bytes[10];
  target.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(wire::put_number(bytes, value) - bytes));
}

// Each part says how long it is, so that no two lanes are written alike.
template <typename List>
void put_dims(std::string& target, const List& dims) {
  put_number(target, dims.size());
  for (int64_t dim : dims) put_number(target, static_cast<uint64_t>(dim));
}

}  // namespace

Rope PlainRequest::take_message() {
  Rope taken = std::move(message);
  message = Rope();
  taken.shorten(arrived_bytes);
  return taken;
}

void PlainRequest::compact() {
  message = message.compact();
  for (InputData& input : inputs) input.mark = Mark{0, input.position};
}

void PlainRequest::clear() {
  route.reset();
  message = Rope();
  arrived_bytes = 0;
  id.clear();
  version.clear();
  inputs.clear();
  outputs.clear();
  shape.clear();
  size_class = 0;
  mask = 0;
  rows = 1;
  timeout_us = priority = 0;
  timing = false;
}

bool decode_plain(Rope& message, const Routes& routes, PlainRequest& made) {
  if (message.size() > wire::max_message_bytes) return false;
  thread_local wire::Request request;
  Reader reader(message);
  if (!wire::read_request(reader, request)) return false;
  const std::shared_ptr<const Route>* route = routes.find(request.model, request.version);
  if (!route) return false;
  made.clear();
  std::vector<Made> typed;
  if (!fit_inputs(message, request, **route, made, typed) || !fit_outputs(request, **route, made)) return false;
  made.route = *route;
  made.id.assign(request.id);
  made.version.assign(request.version);
  made.timeout_us = request.timeout_us;
  made.priority = request.priority;
  made.timing = request.timing;
  made.shape = shape_of(**route, made.mask, made.inputs);
  made.size_class = size_class(**route, made.mask, made.inputs);
  made.arrived_bytes = message.size();
  made.message = std::move(message);
  message = Rope();
  for (const Made& part : typed) {
    InputData& input = made.inputs[part.input];
    input.position = made.message.size();
    input.mark = Mark{made.message.pieces().size(), 0};
    made.message.append_copied(part.slab, part.slab->data(), part.size);
  }
  return true;
}

std::string shape_of(uint64_t mask, const std::vector<const std::vector<int64_t>*>& dims) {
  std::string shape;
  put_number(shape, mask);
  for (const std::vector<int64_t>* each : dims) put_dims(shape, *each);
  return shape;
}

std::string shape_of(const Route& route, uint64_t mask, const std::vector<InputData>& inputs) {
  std::string shape;
  put_number(shape, mask);
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (mask >> i & 1) put_dims(shape, padded(route.inputs[i], inputs[i].dims));
  }
  return shape;
}

}  // namespace podium
