// Bytes as they arrived: pieces of receive buffers, held but not copied.
//
// A tensor's bytes are copied once in user space, from the receive buffer to its row of the batch. So a message is a list of
// pieces, and whoever needs contiguous bytes of it asks for them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "ref.h"

namespace podium {

// Memory that sockets are read into, shared by all messages that have bytes in it.
class Slab final : public Counted {
 public:
  static Ref<Slab> make(size_t capacity) { return Ref<Slab>::take(new Slab(capacity)); }
  uint8_t* data() { return bytes_.get(); }
  size_t capacity() const { return capacity_; }

 private:
  // not zeroed: it is written before it is read
  explicit Slab(size_t capacity) : bytes_(new uint8_t[capacity]), capacity_(capacity) {}
  std::unique_ptr<uint8_t[]> bytes_;
  size_t capacity_;
};

struct Piece {
  Ref<Slab> slab;
  const uint8_t* data;
  size_t size;
};

// A byte of a rope by its piece, for those who know where they are: finding it by position goes through all pieces before it.
struct Mark {
  size_t piece = 0;
  size_t offset = 0;  // within the piece
};

// Ownership: whoever has it may move it to another thread; the bytes never change.
class Rope {
 public:
  size_t size() const { return size_; }
  const std::vector<Piece>& pieces() const { return pieces_; }

  void append(const Ref<Slab>& slab, const uint8_t* data, size_t size) {
    if (!size) return;
    size_ += size;
    if (continues(slab, data)) {
      pieces_.back().size += size;
    } else {
      pieces_.push_back(Piece{slab, data, size});
    }
  }

  // Keeps the first `size` bytes, which must be within.
  void shorten(size_t size) {
    while (size_ - size) {
      Piece& last = pieces_.back();
      size_t part = size_ - size < last.size ? size_ - size : last.size;
      last.size -= part;
      size_ -= part;
      if (!last.size) pieces_.pop_back();
    }
  }

  // As `append`, of bytes that were copied to where they lie.
  void append_copied(const Ref<Slab>& slab, const uint8_t* data, size_t size) {
    append(slab, data, size);
    copied_ += size;
  }
  // Of all its bytes, how many are no longer where they were received.
  size_t copied() const { return copied_; }

  // Whether bytes that lie there would only make the last piece longer.
  bool continues(const Ref<Slab>& slab, const uint8_t* data) const {
    return !pieces_.empty() && pieces_.back().slab.get() == slab.get() && pieces_.back().data + pieces_.back().size == data;
  }

  // Bytes `first` to `first + size`, which must be within; into `target`.
  void copy(size_t first, size_t size, uint8_t* target) const {
    for (const Piece& piece : pieces_) {
      if (first >= piece.size) {
        first -= piece.size;
        continue;
      }
      size_t part = piece.size - first < size ? piece.size - first : size;
      std::memcpy(target, piece.data + first, part);
      target += part;
      size -= part;
      first = 0;
      if (!size) return;
    }
  }

  // The same in place; nullptr where they lie in several pieces.
  const uint8_t* contiguous(size_t first, size_t size) const {
    for (const Piece& piece : pieces_) {
      if (first < piece.size || (first == piece.size && !size))
        return size <= piece.size - first ? piece.data + first : nullptr;
      first -= piece.size;
    }
    return nullptr;
  }

  // As the two above, but beginning at a mark of this rope, which must not have been compacted since.
  void copy(const Mark& first, size_t size, uint8_t* target) const {
    size_t offset = first.offset;
    for (size_t i = first.piece; size; ++i, offset = 0) {
      const Piece& piece = pieces_[i];
      size_t part = piece.size - offset < size ? piece.size - offset : size;
      std::memcpy(target, piece.data + offset, part);
      target += part;
      size -= part;
    }
  }

  const uint8_t* contiguous(const Mark& first, size_t size) const {
    if (first.piece >= pieces_.size()) return nullptr;
    const Piece& piece = pieces_[first.piece];
    return size <= piece.size - first.offset ? piece.data + first.offset : nullptr;
  }

  // One fresh piece: for small messages, which must not hold a whole receive buffer while they wait.
  Rope compact() const {
    Rope made;
    if (!size_) return made;
    Ref<Slab> slab = Slab::make(size_);
    copy(0, size_, slab->data());
    made.append_copied(slab, slab->data(), size_);
    return made;
  }

 private:
  std::vector<Piece> pieces_;
  size_t size_ = 0;
  size_t copied_ = 0;
};

// Bytes on their way out: uninitialised until written, moved, never copied.
struct Bytes {
  Bytes() = default;
  explicit Bytes(size_t size_bytes) : data(new uint8_t[size_bytes]), size(size_bytes) {}
  std::unique_ptr<uint8_t[]> data;
  size_t size = 0;
};

}  // namespace podium
