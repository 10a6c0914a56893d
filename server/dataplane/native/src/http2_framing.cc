#include "http2_framing.h"

#include <algorithm>

namespace podium {

size_t MessageReader::take_prefix(const uint8_t* data, size_t size) {
  size_t part = std::min(size, prefix_bytes - have_);
  std::memcpy(prefix_ + have_, data, part);
  have_ += part;
  if (known()) size_ = size_t{prefix_[1]} << 24 | size_t{prefix_[2]} << 16 | size_t{prefix_[3]} << 8 | prefix_[4];
  return part;
}

size_t MessageReader::take_body(const Ref<Slab>& slab, const uint8_t* data, size_t size) {
  constexpr size_t own_bytes = 16384;
  size_t part = std::min(size, missing());
  // the rest of a piece that two reads of the socket cut is held as that piece is, at no cost
  if (part >= held_from_bytes || body_.continues(slab, data)) {
    body_.append(slab, data, part);
    return part;
  }
  for (size_t left = part; left;) {
    if (!own_ || own_used_ == own_->capacity()) {
      own_ = Slab::make(std::min(missing(), own_bytes));
      own_used_ = 0;
    }
    size_t fits = std::min(left, own_->capacity() - own_used_);
    uint8_t* target = own_->data() + own_used_;
    std::memcpy(target, data, fits);
    body_.append_copied(own_, target, fits);
    own_used_ += fits;
    data += fits;
    left -= fits;
  }
  return part;
}

Rope MessageReader::take() {
  Rope message = std::move(body_);
  drop();
  return message;
}

void MessageReader::drop() {
  body_ = Rope();
  own_ = Ref<Slab>();
  own_used_ = have_ = size_ = 0;
}

}  // namespace podium
