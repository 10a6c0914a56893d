// Sizes first, then one pass over memory of exactly that size: a tensor's bytes are copied once.
#include "infer_response.h"

#include "protobuf_wire.h"

namespace podium {

namespace {

using wire::field_size;
using wire::number_size;
using wire::put_bytes;
using wire::put_field;
using wire::put_number;
using wire::tag;
using wire::Type;

constexpr size_t prefix_bytes = 5;
// Below this much content nobody needs to reckon (server/transport/codec.py, `encode`).
constexpr size_t surely_small_bytes = wire::max_message_bytes - (size_t{1} << 20);

void add_text(std::string& target, uint32_t field, std::string_view text) {
  if (text.empty()) return;  // as proto3 has it
  std::string bytes(field_size(text.size()), '\0');
  put_field(reinterpret_cast<uint8_t*>(bytes.data()), tag(field, Type::length), text);
  target += bytes;
}

struct Entry {
  std::string_view name;
  int64_t value;
};

// Those of the request's times that are wanted; at most five.
struct Entries {
  Entry at[5];
  size_t count = 0;
  explicit Entries(const Timing& timing) {
    if (!timing.wanted) return;
    add("podium_queue_us", timing.queue_us);
    add("podium_execute_us", timing.execute_us);
    if (timing.has_features) add("podium_features_us", timing.features_us);
    add("podium_batch_rows", timing.batch_rows);
    add("podium_total_us", timing.total_us);
  }
  void add(std::string_view name, int64_t value) { at[count++] = Entry{name, value}; }
};

// The entry of `parameters` by which a stream says that a request gets no more answers: field 4, its key, and true.
constexpr std::string_view final_entry =
    "\x22\x1b"
    "\x0a\x15"
    "triton_final_response"
    "\x12\x02\x08\x01";

// A field with an empty text is left out, as proto3 has it.
size_t text_size(std::string_view text) { return text.empty() ? 0 : field_size(text.size()); }
uint8_t* put_text(uint8_t* at, uint32_t field, std::string_view text) {
  return text.empty() ? at : put_field(at, tag(field, Type::length), text);
}

// An InferParameter with an int64, and the map entry that it is the value of.
size_t value_size(const Entry& entry) { return 1 + number_size(static_cast<uint64_t>(entry.value)); }
size_t entry_size(const Entry& entry) { return field_size(entry.name.size()) + field_size(value_size(entry)); }

uint8_t* put_entry(uint8_t* at, const Entry& entry) {
  *at++ = tag(4, Type::length);
  at = put_number(at, entry_size(entry));
  at = put_field(at, tag(1, Type::length), entry.name);
  *at++ = tag(2, Type::length);
  at = put_number(at, value_size(entry));
  *at++ = tag(2, Type::varint);
  return put_number(at, static_cast<uint64_t>(entry.value));
}

size_t shape_size(const OutputData& output) {
  size_t bytes = 0;
  for (size_t i = 0; i < output.dims_count; ++i) bytes += number_size(static_cast<uint64_t>(output.dims[i]));
  return bytes;
}

size_t tensor_size(const std::string& beginning, size_t shape_bytes) {
  return beginning.size() + (shape_bytes ? field_size(shape_bytes) : 0);
}

uint8_t* put_tensor(uint8_t* at, const std::string& beginning, const OutputData& output) {
  size_t shape_bytes = shape_size(output);
  *at++ = tag(5, Type::length);
  at = put_number(at, tensor_size(beginning, shape_bytes));
  at = put_bytes(at, beginning.data(), beginning.size());
  if (!shape_bytes) return at;
  *at++ = tag(3, Type::length);
  at = put_number(at, shape_bytes);
  for (size_t i = 0; i < output.dims_count; ++i) at = put_number(at, static_cast<uint64_t>(output.dims[i]));
  return at;
}

Bytes with_prefix(size_t size) {
  Bytes made(prefix_bytes + size);
  made.data[0] = 0;  // not compressed
  for (size_t i = 0; i < 4; ++i) made.data[1 + i] = static_cast<uint8_t>(size >> (24 - 8 * i));
  return made;
}

}  // namespace

ResponseTemplate response_template(const Route& route) {
  ResponseTemplate made;
  add_text(made.head, 1, route.model);
  add_text(made.head, 2, route.version);
  for (const TensorSpec& output : route.outputs) {
    std::string& beginning = made.tensors.emplace_back();
    add_text(beginning, 1, output.name);
    add_text(beginning, 2, datatype_names[static_cast<size_t>(output.datatype)]);
  }
  return made;
}

Bytes encode_response(const Route& route, std::string_view id, const std::vector<OutputData>& outputs, const Timing& timing,
                      size_t* size, bool streamed) {
  ResponseTemplate fresh;
  bool ready = !route.answer.head.empty() && route.answer.tensors.size() == route.outputs.size();
  if (!ready) fresh = response_template(route);
  const ResponseTemplate& shared = ready ? route.answer : fresh;

  size_t content = 0, rest = shared.head.size() + text_size(id), lengths = 0, times = 0;
  for (const OutputData& output : outputs) {
    content += output.size;
    lengths += 1 + number_size(output.size);
    rest += field_size(tensor_size(shared.tensors[output.output], shape_size(output)));
  }
  Entries entries(timing);
  for (size_t i = 0; i < entries.count; ++i) times += field_size(entry_size(entries.at[i]));
  // as Python reckons, so that both refuse the same answers with the same words
  *size = content + rest + 6 * outputs.size();
  if (content > surely_small_bytes && *size > wire::max_message_bytes) return Bytes();
  *size = content + lengths + rest + times + (streamed ? final_entry.size() : 0);
  size_t whole = streamed ? field_size(*size) : *size;
  if (whole > wire::max_message_bytes) return Bytes();

  Bytes made = with_prefix(whole);
  uint8_t* at = made.data.get() + prefix_bytes;
  if (streamed) {
    *at++ = tag(2, Type::length);
    at = put_number(at, *size);
  }
  at = put_bytes(at, shared.head.data(), shared.head.size());
  at = put_text(at, 3, id);
  if (streamed) at = put_bytes(at, final_entry.data(), final_entry.size());
  for (size_t i = 0; i < entries.count; ++i) at = put_entry(at, entries.at[i]);
  for (const OutputData& output : outputs) at = put_tensor(at, shared.tensors[output.output], output);
  for (const OutputData& output : outputs) {
    *at++ = tag(6, Type::length);
    at = put_bytes(put_number(at, output.size), output.data, output.size);
  }
  return made;
}

Bytes encode_error(std::string_view text, std::string_view id, std::string_view model, std::string_view version) {
  bool admitted = !model.empty();
  size_t inner = text_size(model) + text_size(version) + text_size(id) + (admitted ? final_entry.size() : 0);
  Bytes made = with_prefix(text_size(text) + field_size(inner));
  uint8_t* at = put_text(made.data.get() + prefix_bytes, 1, text);
  *at++ = tag(2, Type::length);
  at = put_number(at, inner);
  at = put_text(at, 1, model);
  at = put_text(at, 2, version);
  at = put_text(at, 3, id);
  if (admitted) put_bytes(at, final_entry.data(), final_entry.size());
  return made;
}

}  // namespace podium
