// The parameters of a request: those that the fast lane understands, and the caller's own, which change nothing here.
#include "infer_request_parts.h"

namespace podium::wire {

namespace {

enum Choice : uint32_t { none = 0, bool_param = 1, int64_param = 2, string_param = 3, double_param = 4, uint64_param = 5 };

struct Value {
  Choice choice = Choice::none;
  uint64_t number = 0;  // of all but texts and doubles
};

bool read_choice(Reader& reader, uint32_t field, Value& value) {
  value.choice = static_cast<Choice>(field >> 3);
  std::string_view text;
  switch (field) {
    case tag(Choice::bool_param, Type::varint):
    case tag(Choice::int64_param, Type::varint):
    case tag(Choice::uint64_param, Type::varint):
      return reader.number(value.number);
    case tag(Choice::string_param, Type::length):
      return reader.text(text) && valid_utf8(text);
    case tag(Choice::double_param, Type::fixed64):
      return reader.skip_field(field);
    default:
      return false;
  }
}

// Exactly one choice: of several the last would count, and of none there is no meaning.
bool read_value(Reader& reader, Value& value) {
  size_t bytes;
  uint32_t field;
  if (value.choice || !reader.size(bytes)) return false;
  size_t outer = reader.enter(bytes);
  if (!reader.field(field) || !read_choice(reader, field, value) || !reader.done()) return false;
  reader.leave(outer);
  return true;
}

bool begins_with(std::string_view text, std::string_view beginning) { return text.substr(0, beginning.size()) == beginning; }

bool not_negative(const Value& value, int64_t& target) {
  target = static_cast<int64_t>(value.number);
  return target >= 0;
}

bool once(uint32_t bit, uint32_t& seen) {
  if (seen & bit) return false;
  seen |= bit;
  return true;
}

// The same cases as `_parameters` of server/transport/codec.py.
bool understand(std::string_view name, const Value& value, Request& request, uint32_t& seen) {
  if (name == "triton_enable_empty_final_response") return once(1, seen) && value.choice == Choice::bool_param;
  if (name == "timeout") {
    return once(2, seen) && value.choice == Choice::int64_param && not_negative(value, request.timeout_us);
  }
  if (name == "priority") {
    bool integer = value.choice == Choice::int64_param || value.choice == Choice::uint64_param;
    return once(4, seen) && integer && not_negative(value, request.priority);
  }
  if (name == "podium_timing") {
    request.timing = value.number != 0;
    return once(8, seen) && value.choice == Choice::bool_param;
  }
  if (begins_with(name, "triton_") || begins_with(name, "podium_") || begins_with(name, "sequence_")) return false;
  return value.choice != Choice::uint64_param && valid_utf8(name);
}

}  // namespace

bool read_parameter(Reader& reader, Request& request, uint32_t& seen) {
  size_t bytes;
  if (!reader.size(bytes)) return false;
  size_t outer = reader.enter(bytes);
  std::string_view name;
  Value value;
  bool named = false;
  uint32_t field;
  while (!reader.done()) {
    if (!reader.field(field)) return false;
    if (field == tag(1, Type::length) && !named) {
      named = true;
      if (!reader.text(name)) return false;
    } else if (field != tag(2, Type::length) || !read_value(reader, value)) {
      return false;
    }
  }
  reader.leave(outer);
  return named && value.choice && understand(name, value, request, seen);
}

}  // namespace podium::wire
