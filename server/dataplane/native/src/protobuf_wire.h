// Protobuf's wire form: fields read from a rope without copying, and written to memory that is large enough.
//
// The reader is strict where protobuf is: whatever it refuses, the reference may still refuse or take, but nothing is read
// beyond the message, and each byte is visited once however the message is cut into pieces.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string_view>

#include "rope.h"

namespace podium::wire {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors lie in memory as they lie on the wire");

enum Type : uint32_t { varint = 0, fixed64 = 1, length = 2, fixed32 = 5 };

constexpr uint32_t tag(uint32_t field, Type type) { return field << 3 | type; }

constexpr size_t max_message_bytes = std::numeric_limits<int32_t>::max();
// Names that are cut by the end of a piece are copied together, up to so many bytes of a message.
constexpr size_t scratch_bytes = size_t{64} << 10;

// Whether bytes are UTF-8 as protobuf wants it: shortest forms only, no surrogates, nothing above U+10FFFF.
bool valid_utf8(std::string_view bytes);

// Goes once through a part of a rope; the rope must outlive it, and its views. After a false answer it is of no use.
class Reader {
 public:
  explicit Reader(const Rope& rope) : Reader(rope, Mark{}, 0, rope.size()) {}

  // The part that begins at a mark, whose position is known, and has `size` bytes.
  Reader(const Rope& rope, const Mark& mark, size_t position, size_t size)
      : rope_(&rope), piece_(mark.piece), base_(position - mark.offset), limit_(position + size) {
    if (piece_ >= rope.pieces().size()) return;  // an empty rope
    data_ = rope.pieces()[piece_].data;
    at_ = data_ + mark.offset;
    clip();
  }

  size_t position() const { return base_ + static_cast<size_t>(at_ - data_); }
  size_t left() const { return limit_ - position(); }
  bool done() const { return at_ == end_ && position() == limit_; }

  bool byte(uint8_t& value) {
    if (at_ == end_ && !advance()) return false;
    value = *at_++;
    return true;
  }

  // Any encoding of at most so many bytes that fits 64 bits.
  bool number(uint64_t& value, unsigned most_bytes = 10) {
    if (at_ != end_ && *at_ < 0x80) {
      value = *at_++;
      return true;
    }
    return long_number(value, most_bytes);
  }

  // A field's number and type. Field 0 does not exist, and a tag has 32 bits.
  bool field(uint32_t& tag) {
    uint64_t value;
    if (!number(value, 5) || value > std::numeric_limits<uint32_t>::max() || value < 8) return false;
    tag = static_cast<uint32_t>(value);
    return true;
  }

  // The length of what follows, which lies within this part.
  bool size(size_t& bytes) {
    uint64_t value;
    if (!number(value, 5) || value > left()) return false;
    bytes = static_cast<size_t>(value);
    return true;
  }

  // `bytes` must not be more than `left()`; likewise below.
  void skip(size_t bytes) {
    while (bytes > static_cast<size_t>(end_ - at_)) {
      bytes -= static_cast<size_t>(end_ - at_);
      at_ = end_;
      advance();
    }
    at_ += bytes;
  }

  // The next bytes, as many as lie in one piece and at most `bytes`, which is not 0: for those who look at all of them.
  std::string_view chunk(size_t bytes) {
    if (at_ == end_) advance();
    size_t here = static_cast<size_t>(end_ - at_);
    std::string_view view(reinterpret_cast<const char*>(at_), here < bytes ? here : bytes);
    at_ += view.size();
    return view;
  }

  void copy(size_t bytes, uint8_t* target) {
    while (bytes) {
      std::string_view part = chunk(bytes);
      std::memcpy(target, part.data(), part.size());
      target += part.size();
      bytes -= part.size();
    }
  }

  // A length and so many bytes, as a view that is valid as long as this reader and the rope are.
  bool text(std::string_view& view) {
    size_t bytes;
    if (!size(bytes)) return false;
    if (bytes <= static_cast<size_t>(end_ - at_)) {
      view = std::string_view(reinterpret_cast<const char*>(at_), bytes);
      at_ += bytes;
      return true;
    }
    return cut_text(bytes, view);
  }

  // Where the next byte is.
  Mark mark() {
    if (at_ == end_ && position() != limit_) advance();
    return Mark{piece_, static_cast<size_t>(at_ - data_)};
  }

  // Goes into a message of so many bytes: it is `done` at its end. `leave` goes on behind it, with what `enter` gave.
  size_t enter(size_t bytes) {
    size_t outer = limit_;
    limit_ = position() + bytes;
    clip();
    return outer;
  }
  void leave(size_t outer) {
    limit_ = outer;
    clip();
  }

  // What a field nobody knows holds. Groups are refused: protobuf would go on to their end.
  bool skip_field(uint32_t tag);

 private:
  void clip() {
    if (!data_) return;
    size_t rest = limit_ - base_, here = rope_->pieces()[piece_].size;
    end_ = data_ + (rest < here ? rest : here);
  }
  bool advance() {
    if (position() == limit_) return false;
    base_ += static_cast<size_t>(at_ - data_);
    at_ = data_ = rope_->pieces()[++piece_].data;
    clip();
    return true;
  }
  bool long_number(uint64_t& value, unsigned most_bytes);
  bool cut_text(size_t bytes, std::string_view& view);

  const Rope* rope_;
  size_t piece_;
  size_t base_;   // where the piece begins
  size_t limit_;  // where this part ends
  const uint8_t* data_ = nullptr;
  const uint8_t* at_ = nullptr;
  const uint8_t* end_ = nullptr;  // of this part or of the piece, whichever is first
  std::unique_ptr<char[]> scratch_;
  size_t scratch_used_ = 0;
};

constexpr size_t number_size(uint64_t value) {
  size_t bytes = 1;
  while (value >= 0x80) {
    value >>= 7;
    ++bytes;
  }
  return bytes;
}

// A field of `bytes` bytes with its length, and a tag of one byte.
constexpr size_t field_size(size_t bytes) { return 1 + number_size(bytes) + bytes; }

// Each writes at `at` and returns what comes behind it.
inline uint8_t* put_number(uint8_t* at, uint64_t value) {
  while (value >= 0x80) {
    *at++ = static_cast<uint8_t>(value | 0x80);
    value >>= 7;
  }
  *at++ = static_cast<uint8_t>(value);
  return at;
}

inline uint8_t* put_bytes(uint8_t* at, const void* data, size_t size) {
  if (size) std::memcpy(at, data, size);
  return at + size;
}

inline uint8_t* put_field(uint8_t* at, uint32_t tag, std::string_view bytes) {
  *at++ = static_cast<uint8_t>(tag);
  return put_bytes(put_number(at, bytes.size()), bytes.data(), bytes.size());
}

}  // namespace podium::wire
