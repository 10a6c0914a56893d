// gRPC's framing of what a caller sends: five bytes of prefix, then the message, in pieces of any size.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rope.h"

namespace podium {

// The messages of one call, one after the other. Bytes are held where they were received, but for small pieces: those are
// copied, because a piece of a few bytes must not hold a whole receive buffer for as long as its message waits.
class MessageReader {
 public:
  static constexpr size_t prefix_bytes = 5;
  static constexpr size_t held_from_bytes = 4096;

  // Takes bytes up to the end of the prefix, or of the message. Returns how many.
  size_t take_prefix(const uint8_t* data, size_t size);
  size_t take_body(const Ref<Slab>& slab, const uint8_t* data, size_t size);

  bool between() const { return !have_; }  // nothing of a message is there
  bool known() const { return have_ == prefix_bytes; }
  bool whole() const { return known() && body_.size() == size_; }
  bool compressed() const { return prefix_[0] == 1; }
  bool prefix_valid() const { return prefix_[0] <= 1; }
  size_t size() const { return size_; }  // of the message, once known
  size_t missing() const { return size_ - body_.size(); }

  // The whole message; the next one may begin.
  Rope take();
  // What has come of it goes.
  void drop();

 private:
  uint8_t prefix_[prefix_bytes] = {};
  size_t have_ = 0;
  size_t size_ = 0;
  Rope body_;
  Ref<Slab> own_;
  size_t own_used_ = 0;
};

}  // namespace podium
