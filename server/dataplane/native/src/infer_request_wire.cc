// What of the reader is not on the straight path: long numbers, names cut by the end of a piece, fields nobody knows.
#include "protobuf_wire.h"

namespace podium::wire {

namespace {

// Length of the sequence at the front of `bytes`, 0 where it is none.
size_t sequence_size(const uint8_t* bytes, size_t size) {
  auto follows = [&](size_t i, uint8_t low = 0x80, uint8_t high = 0xBF) {
    return i < size && bytes[i] >= low && bytes[i] <= high;
  };
  uint8_t first = bytes[0];
  if (first < 0x80) return 1;
  if (first < 0xC2) return 0;
  if (first < 0xE0) return follows(1) ? 2 : 0;
  if (first < 0xF0) {
    uint8_t low = first == 0xE0 ? 0xA0 : 0x80, high = first == 0xED ? 0x9F : 0xBF;
    return follows(1, low, high) && follows(2) ? 3 : 0;
  }
  if (first > 0xF4) return 0;
  uint8_t low = first == 0xF0 ? 0x90 : 0x80, high = first == 0xF4 ? 0x8F : 0xBF;
  return follows(1, low, high) && follows(2) && follows(3) ? 4 : 0;
}

}  // namespace

bool valid_utf8(std::string_view text) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
  size_t i = 0;
  while (i < text.size()) {
    if (text.size() - i >= 8) {
      uint64_t eight;
      std::memcpy(&eight, bytes + i, 8);
      if (!(eight & 0x8080808080808080u)) {
        i += 8;
        continue;
      }
    }
    size_t taken = sequence_size(bytes + i, text.size() - i);
    if (!taken) return false;
    i += taken;
  }
  return true;
}

bool Reader::long_number(uint64_t& value, unsigned most_bytes) {
  value = 0;
  uint8_t next;
  for (unsigned shift = 0; shift < 7 * most_bytes; shift += 7) {
    if (!byte(next)) return false;
    if (shift == 63 && next > 1) return false;
    value |= static_cast<uint64_t>(next & 0x7F) << shift;
    if (next < 0x80) return true;
  }
  return false;
}

bool Reader::cut_text(size_t bytes, std::string_view& view) {
  if (at_ == end_) {
    // it begins with the next piece, and may lie there whole
    advance();
    if (bytes <= static_cast<size_t>(end_ - at_)) {
      view = chunk(bytes);
      return true;
    }
  }
  if (bytes > scratch_bytes - scratch_used_) return false;
  if (!scratch_) scratch_.reset(new char[scratch_bytes]);
  char* target = scratch_.get() + scratch_used_;
  scratch_used_ += bytes;
  view = std::string_view(target, bytes);
  copy(bytes, reinterpret_cast<uint8_t*>(target));
  return true;
}

bool Reader::skip_field(uint32_t tag) {
  uint64_t ignored;
  size_t bytes;
  switch (tag & 7) {
    case Type::varint:
      return number(ignored);
    case Type::length:
      if (!size(bytes)) return false;
      break;
    case Type::fixed32:
      bytes = 4;
      break;
    case Type::fixed64:
      bytes = 8;
      break;
    default:
      return false;
  }
  if (bytes > left()) return false;
  skip(bytes);
  return true;
}

}  // namespace podium::wire
