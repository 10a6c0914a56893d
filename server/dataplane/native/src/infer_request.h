// One ModelInfer message, straight from the wire: no protobuf objects, tensors left where they lie.
//
// It takes what is plain and well, and says `not_plain` to all else: whatever is wrong or unusual is for the Python handler,
// which is the reference and owns every error text. So this may refuse freely, but what it accepts it must understand exactly
// as server/transport/codec.py and server/core/signature.py would.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "rope.h"
#include "routes.h"

namespace podium {

// The dimensions of one tensor, in place. Tensors of more than these are left to Python.
class Dims {
 public:
  static constexpr size_t most = 8;
  Dims() = default;
  // Of at most `most`.
  Dims(const int64_t* first, size_t size) : size_(static_cast<uint8_t>(size)) {
    for (size_t i = 0; i < size; ++i) dims_[i] = first[i];
  }
  Dims(std::initializer_list<int64_t> dims) : Dims(dims.begin(), dims.size()) {}
  size_t size() const { return size_; }
  bool empty() const { return !size_; }
  const int64_t* data() const { return dims_; }
  const int64_t* begin() const { return dims_; }
  const int64_t* end() const { return dims_ + size_; }
  int64_t operator[](size_t i) const { return dims_[i]; }

 private:
  int64_t dims_[most] = {};
  uint8_t size_ = 0;
};

// Where an input's bytes are, in the message they came in; in wire form: little-endian, row-major, BYTES with lengths.
// `position` and `mark` are the same byte: copying from the mark does not go through the pieces before it.
struct InputData {
  size_t position = 0;
  size_t size = 0;
  Dims dims;  // without the batch dimension where the model batches
  Mark mark;
};

// A request that fits its version. `inputs` by the route's index, meaningful where `mask` has the bit; `outputs`: indices into
// the route's outputs in the order asked for, empty: all of them, in the route's order. `shape`, `size_class`: see Ticket.
// `message` may be longer than what arrived: elements that came one by one are behind it, put together. `version` is as its caller
// wrote it.
struct PlainRequest {
  std::shared_ptr<const Route> route;
  Rope message;
  size_t arrived_bytes = 0;
  std::string id;
  std::string version;
  std::vector<InputData> inputs;
  uint64_t mask = 0;
  std::vector<uint16_t> outputs;
  std::string shape;
  uint32_t size_class = 0;
  int64_t rows = 1;
  int64_t timeout_us = 0;  // 0: none stated
  int64_t priority = 0;    // 0: none stated
  bool timing = false;

  // Gives away the message as it arrived: for another to decode. The rest is of no use then.
  Rope take_message();
  // Copies the message into one fresh piece, see Rope::compact.
  void compact();
  // As new, but what it has allocated is kept for the next request.
  void clear();
};

// Decodes and checks; false where it is not plain, and then `made` is of no use and `message` unchanged.
// Ownership: `message` is moved into `made` where the result is true. `made` may have been used before. Thread-safe.
bool decode_plain(Rope& message, const Routes& routes, PlainRequest& made);

// The lane of a request: which inputs it brings, and the dims they are executed with, without the batch dimension, in the order
// of the bits.
std::string shape_of(uint64_t mask, const std::vector<const std::vector<int64_t>*>& dims);
// The same, of a decoded request's `inputs`.
std::string shape_of(const Route& route, uint64_t mask, const std::vector<InputData>& inputs);

}  // namespace podium
