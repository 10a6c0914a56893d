// The message as it is: fields in any order, each singular one at most once, those nobody knows skipped.
#include "infer_request_parts.h"

namespace podium::wire {

namespace {

// Protobuf takes the last of several; nobody sends several, so Python may see to it.
bool text_once(Reader& reader, uint32_t bit, uint32_t& seen, std::string_view& view) {
  if (seen & bit) return false;
  seen |= bit;
  return reader.text(view);
}

bool read_dim(Reader& reader, Tensor& tensor) {
  uint64_t value;
  if (tensor.dims_count == max_dims || !reader.number(value)) return false;
  tensor.dims[tensor.dims_count++] = static_cast<int64_t>(value);
  return true;
}

bool read_dims(Reader& reader, Tensor& tensor) {
  size_t bytes;
  if (!reader.size(bytes)) return false;
  size_t outer = reader.enter(bytes);
  while (!reader.done()) {
    if (!read_dim(reader, tensor)) return false;
  }
  reader.leave(outer);
  return true;
}

bool read_span(Reader& reader, Span& span) {
  if (!reader.size(span.size)) return false;
  span.position = reader.position();
  span.mark = reader.mark();
  reader.skip(span.size);
  return true;
}

bool read_input_field(Reader& reader, uint32_t field, uint32_t& seen, Tensor& tensor) {
  switch (field) {
    case tag(1, Type::length):
      return text_once(reader, 1, seen, tensor.name);
    case tag(2, Type::length):
      return text_once(reader, 2, seen, tensor.datatype);
    case tag(3, Type::length):
      return read_dims(reader, tensor);
    case tag(3, Type::varint):
      return read_dim(reader, tensor);
    case tag(5, Type::length):
      if (tensor.typed) return false;
      tensor.typed = true;
      return read_span(reader, tensor.data);
    default:
      // parameters (4) say that it lies in shared memory, or are wrong
      return field >> 3 > 5 && reader.skip_field(field);
  }
}

bool read_input(Reader& reader, Tensor& tensor) {
  tensor.name = tensor.datatype = std::string_view();
  tensor.dims_count = 0;
  tensor.typed = false;
  size_t bytes;
  if (!reader.size(bytes)) return false;
  size_t outer = reader.enter(bytes);
  uint32_t seen = 0, field;
  while (!reader.done()) {
    if (!reader.field(field) || !read_input_field(reader, field, seen, tensor)) return false;
  }
  reader.leave(outer);
  return true;
}

bool read_output(Reader& reader, std::string_view& name) {
  name = std::string_view();
  size_t bytes;
  if (!reader.size(bytes)) return false;
  size_t outer = reader.enter(bytes);
  uint32_t seen = 0, field;
  while (!reader.done()) {
    if (!reader.field(field)) return false;
    if (field == tag(1, Type::length)) {
      if (!text_once(reader, 1, seen, name)) return false;
    } else if (field >> 3 <= 2 || !reader.skip_field(field)) {
      return false;  // parameters (2): its classes, or a place in shared memory
    }
  }
  reader.leave(outer);
  return true;
}

bool read_field(Reader& reader, uint32_t field, uint32_t& seen, uint32_t& seen_parameters, Request& request) {
  switch (field) {
    case tag(1, Type::length):
      return text_once(reader, 1, seen, request.model);
    case tag(2, Type::length):
      return text_once(reader, 2, seen, request.version);
    case tag(3, Type::length):
      return text_once(reader, 4, seen, request.id) && valid_utf8(request.id);
    case tag(4, Type::length):
      return read_parameter(reader, request, seen_parameters);
    case tag(5, Type::length):
      return request.inputs_count < max_tensors && read_input(reader, request.inputs[request.inputs_count++]);
    case tag(6, Type::length):
      return request.outputs_count < max_tensors && read_output(reader, request.outputs[request.outputs_count++]);
    case tag(7, Type::length):
      return request.raw_count < max_tensors && read_span(reader, request.raw[request.raw_count++]);
    default:
      return field >> 3 > 7 && reader.skip_field(field);
  }
}

// Either all inputs have raw contents, one after the other, or each has its own.
bool deal_out(Request& request) {
  if (request.raw_count && request.raw_count != request.inputs_count) return false;
  for (size_t i = 0; i < request.inputs_count; ++i) {
    if (request.inputs[i].typed == (request.raw_count > 0)) return false;
    if (request.raw_count) request.inputs[i].data = request.raw[i];
  }
  return true;
}

}  // namespace

bool read_request(Reader& reader, Request& request) {
  request.clear();
  uint32_t seen = 0, seen_parameters = 0, field;
  while (!reader.done()) {
    if (!reader.field(field) || !read_field(reader, field, seen, seen_parameters, request)) return false;
  }
  return deal_out(request);
}

}  // namespace podium::wire
