// Between the two halves of `decode_plain`: what a message says, before it is compared with a version. Private to it.
#pragma once

#include <cstdint>
#include <string_view>

#include "infer_request.h"
#include "protobuf_wire.h"

namespace podium::wire {

// With the batch dimension.
constexpr size_t max_dims = Dims::most + 1;
// Each set of inputs must fit a mask.
constexpr size_t max_tensors = 64;

// A part of the message.
struct Span {
  size_t position;
  size_t size;
  Mark mark;
};

struct Tensor {
  std::string_view name;
  std::string_view datatype;
  int64_t dims[max_dims];
  size_t dims_count;
  Span data;   // its raw contents, or the message in `contents`
  bool typed;  // the latter
};

// Views of the message or of its reader's scratch: valid as long as both are. It is used again for the next message, and only what the counts cover is
// meaningful: making all of it anew would cost more than reading a message does.
struct Request {
  void clear() {
    model = version = id = std::string_view();
    timeout_us = priority = 0;
    timing = false;
    inputs_count = outputs_count = raw_count = 0;
  }

  std::string_view model, version, id;
  int64_t timeout_us = 0, priority = 0;
  bool timing = false;
  Tensor inputs[max_tensors];
  std::string_view outputs[max_tensors];
  Span raw[max_tensors];
  size_t inputs_count = 0, outputs_count = 0, raw_count = 0;
};

// Reads a whole message; raw contents are given to the inputs they belong to. False where it is not plain.
bool read_request(Reader& reader, Request& request);

// One entry of the parameters; `seen` are bits of those that may come once.
bool read_parameter(Reader& reader, Request& request, uint32_t& seen);

// Elements that came in `contents`, `count` of them wanted. What lies in wire form already stays where it is: `span` is that
// part. All else is put together in `made`, which is then `made_size` bytes of wire form.
bool read_typed(const Rope& rope, Datatype datatype, uint64_t count, Span& span, Ref<Slab>& made, size_t& made_size);

}  // namespace podium::wire
