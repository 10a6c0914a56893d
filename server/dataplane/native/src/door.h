// The door of a native server: plain ModelInfer calls go to the plane (the fast lane), all others to Python (the slow lane).
#pragma once

#include <memory>

#include "calls.h"
#include "http2.h"

namespace podium {

class Plane;

// `calls` and `plane` must outlive it. `subjects`: callers have certificates, whose names count as their consumer's.
std::unique_ptr<Door> make_door(Plane& plane, Calls& calls, int io_threads, bool subjects);

}  // namespace podium
