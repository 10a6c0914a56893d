#include "message.h"

namespace podium::client {

namespace {

constexpr uint32_t wire_varint = 0, wire_fixed64 = 1, wire_bytes = 2, wire_fixed32 = 5;

void put_varint(std::string& to, uint64_t value) {
  for (; value >= 0x80; value >>= 7) to.push_back(static_cast<char>(value | 0x80));
  to.push_back(static_cast<char>(value));
}

void put_key(std::string& to, uint32_t field, uint64_t length) {
  put_varint(to, field << 3 | wire_bytes);
  put_varint(to, length);
}

void put_bytes(std::string& to, uint32_t field, std::string_view bytes) {
  put_key(to, field, bytes.size());
  to.append(bytes);
}

// A cursor over protobuf fields; after a fault `good` is false and nothing more is read.
class Fields {
 public:
  explicit Fields(std::string_view bytes) : left_(bytes) {}

  bool good() const { return good_; }
  uint32_t field() const { return field_; }
  std::string_view bytes() const { return bytes_; }  // of a length-delimited field; empty for others
  uint64_t value() const { return value_; }
  bool delimited() const { return wire_ == wire_bytes; }

  bool next() {
    if (left_.empty() || !good_) return false;
    const uint64_t key = varint();
    field_ = static_cast<uint32_t>(key >> 3);
    wire_ = static_cast<uint32_t>(key & 7);
    bytes_ = {};
    if (field_ == 0 || key >> 32) good_ = false;
    if (!good_) return false;
    switch (wire_) {
      case wire_varint:
        value_ = varint();
        break;
      case wire_fixed64:
        take(8);
        break;
      case wire_bytes:
        bytes_ = take(varint());
        break;
      case wire_fixed32:
        take(4);
        break;
      default:
        good_ = false;
    }
    return good_;
  }

  // The rest as packed integers.
  bool integers(std::vector<int64_t>& into) {
    while (good_ && !left_.empty()) into.push_back(static_cast<int64_t>(varint()));
    return good_;
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (left_.empty()) break;
      const auto byte = static_cast<uint8_t>(left_.front());
      left_.remove_prefix(1);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    good_ = false;
    return 0;
  }

  std::string_view take(uint64_t length) {
    if (length > left_.size()) {
      good_ = false;
      return {};
    }
    const std::string_view taken = left_.substr(0, length);
    left_.remove_prefix(length);
    return taken;
  }

  std::string_view left_, bytes_;
  uint64_t value_ = 0;
  uint32_t field_ = 0, wire_ = 0;
  bool good_ = true;
};

bool read_output(std::string_view bytes, Answer& answer) {
  Fields fields(bytes);
  while (fields.next()) {
    if (fields.field() == 1) answer.output = fields.bytes();
    if (fields.field() == 2) answer.datatype = fields.bytes();
    if (fields.field() == 3 && fields.delimited() && !Fields(fields.bytes()).integers(answer.shape)) return false;
    if (fields.field() == 3 && !fields.delimited()) answer.shape.push_back(static_cast<int64_t>(fields.value()));
    if (fields.field() != 5) continue;
    // an answer in typed contents: its fp32_contents are the same bytes
    Fields contents(fields.bytes());
    while (contents.next()) {
      if (contents.field() != 6) continue;
      answer.values = contents.bytes();
      ++answer.tensors;
    }
    if (!contents.good()) return false;
  }
  return fields.good();
}

}  // namespace

namespace {

// Name, version, id and parameters; where the id stands.
size_t put_opening(const RequestForm& form, std::string& message) {
  put_bytes(message, 1, form.model);
  if (!form.version.empty()) put_bytes(message, 2, form.version);
  put_key(message, 3, id_bytes);
  const size_t id_at = message.size();
  message.append(id_bytes, '0');
  if (form.timeout_us > 0) {
    std::string value, entry;
    put_varint(value, 2 << 3 | wire_varint);  // int64_param
    put_varint(value, form.timeout_us);
    put_bytes(entry, 1, "timeout");
    put_bytes(entry, 2, value);
    put_bytes(message, 4, entry);
  }
  return id_at;
}

RequestHead framed(const std::string& message, size_t id_at, uint64_t payload) {
  const uint64_t length = message.size() + payload;
  std::string prefix(1, '\0');
  for (int shift = 24; shift >= 0; shift -= 8) prefix.push_back(static_cast<char>(length >> shift));
  return {prefix + message, prefix_bytes + id_at};
}

}  // namespace

RequestHead request_head(const RequestForm& form) {
  const uint64_t payload = form.width * sizeof(float);
  std::string shape;
  put_varint(shape, 1);
  put_varint(shape, form.width);
  std::string tensor, contents;
  put_bytes(tensor, 1, form.input);
  put_bytes(tensor, 2, "FP32");
  put_bytes(tensor, 3, shape);
  if (form.typed) {
    put_key(contents, 6, payload);
    put_key(tensor, 5, contents.size() + payload);
    tensor.append(contents);
  }
  std::string message;
  const size_t id_at = put_opening(form, message);
  put_key(message, 5, tensor.size() + (form.typed ? payload : 0));
  message.append(tensor);
  if (!form.typed) put_key(message, 7, payload);
  return framed(message, id_at, payload);
}

RequestHead body_head(const RequestForm& form, size_t body_bytes) {
  std::string message;
  const size_t id_at = put_opening(form, message);
  return framed(message, id_at, body_bytes);
}

void write_id(uint64_t number, char* to) {
  for (size_t place = id_bytes; place-- > 0; number >>= 4) to[place] = "0123456789abcdef"[number & 15];
}

bool read_answer(std::string_view framed, Answer& answer) {
  if (framed.size() < prefix_bytes || framed[0] != 0) return false;
  uint64_t length = 0;
  for (size_t place = 1; place < prefix_bytes; ++place) length = length << 8 | static_cast<uint8_t>(framed[place]);
  if (length != framed.size() - prefix_bytes) return false;
  answer.model = answer.version = answer.id = answer.output = answer.datatype = answer.values = {};
  answer.shape.clear();
  answer.raw.clear();
  answer.all_fp32 = true;
  answer.outputs = answer.tensors = 0;
  Fields fields(framed.substr(prefix_bytes));
  while (fields.next()) {
    switch (fields.field()) {
      case 1:
        answer.model = fields.bytes();
        break;
      case 2:
        answer.version = fields.bytes();
        break;
      case 3:
        answer.id = fields.bytes();
        break;
      case 5:
        ++answer.outputs;
        answer.datatype = {};
        if (!read_output(fields.bytes(), answer)) return false;
        answer.all_fp32 = answer.all_fp32 && answer.datatype == "FP32";
        break;
      case 6:
        ++answer.tensors;
        answer.values = fields.bytes();
        answer.raw.push_back(answer.values);
        break;
      default:
        break;
    }
  }
  return fields.good();
}

}  // namespace podium::client
