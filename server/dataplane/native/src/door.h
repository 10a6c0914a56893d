// The door of a native server: plain messages of ModelInfer and ModelStreamInfer go to the plane (the fast lane), all others to
// Python (the slow lane).
#pragma once

#include <memory>

#include "calls.h"
#include "http2.h"
#include "stream_lane.h"

namespace podium {

class Plane;

// `calls` and `plane` must outlive it. `subjects`: callers have certificates, whose names count as their consumer's.
std::unique_ptr<Door> make_door(Plane& plane, Calls& calls, int io_threads, bool subjects,
                                const StreamLimits& limits = StreamLimits());

}  // namespace podium
