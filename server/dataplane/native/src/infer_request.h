// One ModelInfer message, straight from the wire: no protobuf objects, tensors left where they lie.
//
// It takes what is plain and well, and says `not_plain` to all else: whatever is wrong or unusual is for the Python handler,
// which is the reference and owns every error text. So this may refuse freely, but what it accepts it must understand exactly
// as server/transport/codec.py and server/core/signature.py would.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "rope.h"
#include "routes.h"

namespace podium {

// Where an input's bytes are, in the message they came in.
struct InputData {
  size_t position;
  size_t size;
  std::vector<int64_t> dims;  // without the batch dimension where the model batches
};

// A request that fits its version. `inputs` by the route's index, meaningful where `mask` has the bit; `outputs`: indices into
// the route's outputs in the order asked for, empty: all of them, in the route's order. `shape`: see Ticket.
struct PlainRequest {
  std::shared_ptr<const Route> route;
  Rope message;
  std::string id;
  std::vector<InputData> inputs;
  uint64_t mask = 0;
  std::vector<uint16_t> outputs;
  std::string shape;
  int64_t rows = 1;
  int64_t timeout_us = 0;  // 0: none stated
  int64_t priority = 0;    // 0: none stated
  bool timing = false;
};

// Decodes and checks; false where it is not plain, and then `made` is of no use and `message` unchanged.
// Ownership: `message` is moved into `made` where the result is true.
bool decode_plain(Rope& message, const Routes& routes, PlainRequest& made);

// The lane of a request: which inputs it brings, and their dims without the batch dimension.
std::string shape_of(uint64_t mask, const std::vector<const std::vector<int64_t>*>& dims);

}  // namespace podium
