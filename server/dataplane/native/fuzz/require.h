// What must hold for every input of a fuzzer: if not, the process aborts, and the input is kept.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace podium {

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

}  // namespace podium
