#include "http2_output.h"

namespace podium {

void Output::copy(const uint8_t* data, size_t size) {
  if (!size) return;
  bool extends = !parts_.empty() && parts_.back().shared && parts_.back().owner.get() == bump_.slab().get() &&
                 bump_.room() >= size && parts_.back().data + parts_.back().size == bump_.next();
  if (!extends) bump_.reserve(size);
  uint8_t* target = bump_.next();
  std::memcpy(target, data, size);
  bump_.take(size);
  pending_ += size;
  if (extends) {
    parts_.back().size += size;
  } else {
    parts_.push_back(Part{Ref<Counted>(*bump_.slab()), target, size, true});
  }
}

void Output::hold(Ref<Counted> owner, const uint8_t* data, size_t size) {
  if (!size) return;
  pending_ += size;
  parts_.push_back(Part{std::move(owner), data, size, false});
}

int Output::gather(iovec* pieces, int most) const {
  int count = 0;
  for (size_t at = first_; at < parts_.size() && count < most; ++at, ++count) {
    pieces[count].iov_base = const_cast<uint8_t*>(parts_[at].data);
    pieces[count].iov_len = parts_[at].size;
  }
  return count;
}

void Output::written(size_t size) {
  pending_ -= size;
  while (size) {
    Part& part = parts_[first_];
    if (size < part.size) {
      part.data += size;
      part.size -= size;
      return;
    }
    size -= part.size;
    part.owner = Ref<Counted>();
    ++first_;
  }
  if (first_ == parts_.size()) {
    parts_.clear();
    first_ = 0;
  }
}

void Output::settle() {
  parts_.erase(parts_.begin(), parts_.begin() + static_cast<std::ptrdiff_t>(first_));
  first_ = 0;
  size_t total = 0;
  for (const Part& part : parts_) total += part.shared ? part.size : 0;
  if (!total) return;
  Ref<Slab> own = Slab::make(total);
  uint8_t* target = own->data();
  for (Part& part : parts_) {
    if (!part.shared) continue;
    std::memcpy(target, part.data, part.size);
    part = Part{Ref<Counted>(*own), target, part.size, false};
    target += part.size;
  }
}

void Output::clear() {
  parts_.clear();
  first_ = pending_ = 0;
}

}  // namespace podium
