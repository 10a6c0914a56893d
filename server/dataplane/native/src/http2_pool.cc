#include "http2_pool.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace podium {

// Before each piece stands its size in steps; 0 is one that malloc gave.
struct Pool::Piece {
  alignas(16) size_t steps;
  size_t size;
  Piece*& next() { return *reinterpret_cast<Piece**>(this + 1); }
};

Pool::Pool() {
  memory_.mem_user_data = this;
  memory_.malloc = [](size_t size, void* pool) { return static_cast<Pool*>(pool)->take(size); };
  memory_.free = [](void* bytes, void* pool) { static_cast<Pool*>(pool)->put(bytes); };
  memory_.calloc = [](size_t count, size_t size, void* pool) -> void* {
    if (size && count > SIZE_MAX / size) return nullptr;
    void* bytes = static_cast<Pool*>(pool)->take(count * size);
    return bytes ? std::memset(bytes, 0, count * size) : nullptr;
  };
  memory_.realloc = [](void* bytes, size_t size, void* pool) { return static_cast<Pool*>(pool)->resize(bytes, size); };
}

Pool::~Pool() {
  for (Piece* piece : free_) {
    while (piece) std::free(std::exchange(piece, piece->next()));
  }
}

void* Pool::take(size_t size) {
  size_t steps = std::max<size_t>((size + step - 1) / step, 1);
  Piece* piece;
  if (steps < sizes && free_[steps]) {
    piece = free_[steps];
    free_[steps] = piece->next();
    --count_[steps];
  } else {
    if (size > SIZE_MAX / 2) return nullptr;
    piece = static_cast<Piece*>(std::malloc(sizeof(Piece) + steps * step));
    if (!piece) return nullptr;
    piece->steps = steps < sizes ? steps : 0;
  }
  piece->size = size;
  return piece + 1;
}

void Pool::put(void* bytes) {
  if (!bytes) return;
  Piece* piece = static_cast<Piece*>(bytes) - 1;
  size_t steps = piece->steps;
  if (!steps || count_[steps] == kept) {
    std::free(piece);
    return;
  }
  piece->next() = free_[steps];
  free_[steps] = piece;
  ++count_[steps];
}

void* Pool::resize(void* bytes, size_t size) {
  if (!bytes) return take(size);
  size_t old = (static_cast<Piece*>(bytes) - 1)->size;
  void* fresh = take(size);
  if (!fresh) return nullptr;
  std::memcpy(fresh, bytes, std::min(old, size));
  put(bytes);
  return fresh;
}

}  // namespace podium
