#include "compression.h"

#include <zlib.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>

namespace podium {

namespace {

constexpr size_t prefix_size = 5;
constexpr size_t smallest_slab = 4096;
constexpr size_t largest_slab = 1 << 20;

int window_bits(int encoding) { return encoding == gzip_encoding ? 15 | 16 : 15; }

// What zlib's counters can hold.
uInt part_of(size_t size) { return static_cast<uInt>(std::min<size_t>(size, std::numeric_limits<uInt>::max())); }

class Inflater {
 public:
  explicit Inflater(int encoding) {
    if (inflateInit2(&stream_, window_bits(encoding)) != Z_OK) throw std::bad_alloc();
  }
  ~Inflater() { inflateEnd(&stream_); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;

  // Until `bytes` are used up or `room` is full; both move on. False where they are not what they should be.
  bool expand(const uint8_t** bytes, size_t* size, uint8_t** room, size_t* left) {
    stream_.next_in = const_cast<Bytef*>(*bytes);
    stream_.avail_in = part_of(*size);
    stream_.next_out = *room;
    stream_.avail_out = part_of(*left);
    int result = ::inflate(&stream_, Z_NO_FLUSH);
    if (result == Z_MEM_ERROR) throw std::bad_alloc();
    *size -= static_cast<size_t>(stream_.next_in - *bytes);
    *left -= static_cast<size_t>(stream_.next_out - *room);
    *bytes = stream_.next_in;
    *room = stream_.next_out;
    ended_ = result == Z_STREAM_END;
    // a buffer error is nothing but a lack of input or room
    return result == Z_OK || result == Z_STREAM_END || result == Z_BUF_ERROR;
  }
  bool ended() const { return ended_; }

 private:
  z_stream stream_{};
  bool ended_ = false;
};

// Memory that grows with what is in it, and ends where the message may.
class Room {
 public:
  Room(size_t max_bytes, size_t first_size) : max_bytes_(max_bytes), next_size_(first_size) {}

  // One byte more than allowed is there to be filled: that one says that there is more.
  void grow() {
    size_t allowed = max_bytes_ - rope_.size();
    size_t size = next_size_ > allowed ? allowed + 1 : next_size_;
    next_size_ = std::min(next_size_ * 2, std::max(next_size_, largest_slab));
    slab_ = Slab::make(size);
    at = first_ = slab_->data();
    left = size;
  }
  void keep() {
    if (at != first_) rope_.append(slab_, first_, static_cast<size_t>(at - first_));
    first_ = at;
  }
  bool too_large() const { return rope_.size() > max_bytes_; }
  Rope& rope() { return rope_; }

  uint8_t* at = nullptr;
  size_t left = 0;

 private:
  size_t max_bytes_;
  size_t next_size_;
  Rope rope_;
  Ref<Slab> slab_;
  uint8_t* first_ = nullptr;
};

Inflated expand_piece(Inflater& inflater, const Piece& piece, Room& room) {
  const uint8_t* bytes = piece.data;
  size_t size = piece.size;
  do {
    if (inflater.ended()) return Inflated::malformed;
    if (!room.left) room.grow();
    if (!inflater.expand(&bytes, &size, &room.at, &room.left)) return Inflated::malformed;
    room.keep();
    if (room.too_large()) return Inflated::too_large;
    // a full room may mean that zlib holds back more of what it has read
  } while (size || (!room.left && !inflater.ended()));
  return Inflated::ok;
}

}  // namespace

Inflated inflate(const Rope& in, int encoding, size_t max_bytes, Rope* out) {
  if (!in.size()) return Inflated::ok;
  Inflater inflater(encoding);
  // tensors shrink to a quarter at best: most messages fit into one piece
  size_t likely = std::min(std::max(in.size(), smallest_slab / 4), largest_slab / 4) * 4;
  Room room(max_bytes, likely);
  for (const Piece& piece : in.pieces()) {
    Inflated result = expand_piece(inflater, piece, room);
    if (result != Inflated::ok) return result;
  }
  if (!inflater.ended()) return Inflated::malformed;
  for (const Piece& piece : room.rope().pieces()) out->append(piece.slab, piece.data, piece.size);
  return Inflated::ok;
}

Bytes deflate_message(Bytes framed, int encoding) {
  if (framed.size <= prefix_size + 1 || framed.data[0]) return framed;
  size_t size = framed.size - prefix_size;
  if (size > std::numeric_limits<uint32_t>::max()) return framed;
  z_stream stream{};
  int made = deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, window_bits(encoding), 8, Z_DEFAULT_STRATEGY);
  if (made != Z_OK) return framed;
  // no room for as much as there was: what does not fit is not wanted
  Bytes squeezed(framed.size - 1);
  stream.next_in = framed.data.get() + prefix_size;
  stream.avail_in = static_cast<uInt>(size);
  stream.next_out = squeezed.data.get() + prefix_size;
  stream.avail_out = static_cast<uInt>(size - 1);
  int result = deflate(&stream, Z_FINISH);
  deflateEnd(&stream);
  if (result != Z_STREAM_END) return framed;
  uint32_t left = static_cast<uint32_t>(size - 1 - stream.avail_out);
  squeezed.data[0] = 1;
  for (int byte = 0; byte < 4; ++byte) squeezed.data[1 + byte] = static_cast<uint8_t>(left >> (24 - 8 * byte));
  squeezed.size = prefix_size + left;
  return squeezed;
}

}  // namespace podium
