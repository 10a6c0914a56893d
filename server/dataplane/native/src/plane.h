// Queues and batches behind one lock: the native twin of server/dataplane/python/plane.py.
//
// Parties: IO threads admit and cancel (fast lane), Python's door does the same for the requests it decoded itself (slow lane),
// engine threads take and finish batches, one timer thread ends what expires while it waits.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "calls.h"
#include "http2.h"
#include "infer_request.h"
#include "plan.h"

namespace podium {

class Plane;

// The door of a native server: plain ModelInfer calls go to the plane, all others to `calls`. Both must outlive it.
std::unique_ptr<Door> make_door(Plane& plane, Calls& calls);

}  // namespace podium
