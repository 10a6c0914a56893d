// Messages squeezed and expanded, as gRPC's C core does. **Pure.**
#pragma once

#include <cstddef>

#include "rope.h"

namespace podium {

// Of a message; the numbers are HttpConfig's.
constexpr int gzip_encoding = 1;
constexpr int deflate_encoding = 2;  // zlib's format, as in HTTP

enum class Inflated { ok, malformed, too_large };

// Appends what `in` expands to. It stops as soon as that is more than `max_bytes`: memory is taken as it is filled, so a small
// message that claims to be huge costs what it may cost. `out` is unchanged unless ok. An empty message expands to an empty
// one; bytes after the end are malformed. Throws std::bad_alloc.
Inflated inflate(const Rope& in, int encoding, size_t max_bytes, Rope* out);

// A framed message (its prefix of five bytes, then its bytes), squeezed and framed anew; itself where it would not become
// smaller, is empty or squeezed already.
Bytes deflate_message(Bytes framed, int encoding);

}  // namespace podium
