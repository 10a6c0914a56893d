// What a connection has to write: small things copied together, large messages where they lie.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "rope.h"

namespace podium {

// Memory handed out from front to back, and from the front again when nobody holds any of it: in the usual case one buffer that
// stays in the cache. Its loop's thread only; what was handed out may be read by any.
class Bump {
 public:
  explicit Bump(size_t slab_bytes) : slab_bytes_(slab_bytes) {}

  // Makes room for at least `least` bytes; a fresh slab has at least `fresh` bytes.
  void reserve(size_t least, size_t fresh = 0) {
    if (slab_ && slab_->alone()) used_ = 0;
    if (slab_ && slab_->capacity() - used_ >= least) return;
    slab_ = Slab::make(std::max({least, fresh, slab_bytes_}));
    used_ = 0;
  }
  size_t room() const { return slab_ ? slab_->capacity() - used_ : 0; }
  uint8_t* next() { return slab_->data() + used_; }
  void take(size_t size) { used_ += size; }
  const Ref<Slab>& slab() const { return slab_; }

 private:
  size_t slab_bytes_;
  Ref<Slab> slab_;
  size_t used_ = 0;
};

class Output {
 public:
  explicit Output(Bump& bump) : bump_(bump) {}

  // Large messages are copied too: for TLS, which copies them anyway, and makes a record of each piece.
  void join() { joins_ = true; }
  bool joins() const { return joins_; }

  size_t pending() const { return pending_; }
  void copy(const uint8_t* data, size_t size);
  void hold(Ref<Counted> owner, const uint8_t* data, size_t size);

  // The first pieces, for writev; how many.
  int gather(iovec* pieces, int most) const;
  void written(size_t size);
  // The rest has to wait for its socket: it leaves the shared buffer, which it would hold.
  void settle();
  void clear();

 private:
  struct Part {
    Ref<Counted> owner;
    const uint8_t* data;
    size_t size;
    bool shared;
  };
  Bump& bump_;
  std::vector<Part> parts_;
  size_t first_ = 0;
  bool joins_ = false;
  size_t pending_ = 0;
};

}  // namespace podium
