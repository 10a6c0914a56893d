// Memory of one thread's HTTP/2 sessions: small pieces that come and go with every call, kept for the next one.
#pragma once

#include <nghttp2/nghttp2.h>

#include <array>
#include <cstddef>

// gcc defines a macro, clang has a question
#if defined(__SANITIZE_ADDRESS__)
#define PODIUM_ADDRESS_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PODIUM_ADDRESS_SANITIZER
#endif
#endif

namespace podium {

// One thread's. Every piece must be back before it dies. Holds at most `kept` free pieces of each size.
class Pool {
 public:
  Pool();
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  nghttp2_mem* memory() { return &memory_; }

 private:
  struct Piece;
  static constexpr size_t step = 64, sizes = 17;
#ifdef PODIUM_ADDRESS_SANITIZER
  static constexpr size_t kept = 0;  // what is used after it was given back is to be seen
#else
  static constexpr size_t kept = 4096;
#endif

  void* take(size_t size);
  void put(void* bytes);
  void* resize(void* bytes, size_t size);

  nghttp2_mem memory_;
  std::array<Piece*, sizes> free_{};
  std::array<size_t, sizes> count_{};
};

}  // namespace podium
