// ModelInferResponse, written from a template of what all answers of a version share.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "rope.h"
#include "routes.h"

namespace podium {

// One output of one answer: rows of an array that Python holds. `dims` with the batch dimension where there is one.
struct OutputData {
  uint16_t output;  // index into the route's outputs
  const int64_t* dims;
  size_t dims_count;
  const uint8_t* data;
  size_t size;
};

// Microseconds and rows, as the parameters podium_queue_us, ... say them (server/transport/infer.py, _time).
struct Timing {
  bool wanted = false;
  bool has_features = false;
  int64_t queue_us = 0, execute_us = 0, features_us = 0, batch_rows = 0, total_us = 0;
};

// What all answers of a version share. A route has it in `answer`; one that has not gets it made for every answer.
ResponseTemplate response_template(const Route& route);

// The whole gRPC message: five bytes of prefix, then the response. Byte for byte what server/transport/codec.py serialises, but
// for the order of map entries. Empty `Bytes` where that refuses it as larger than 2**31 - 1 bytes. `size` is that of the
// response, of a refused one as the reference reckons it.
// `streamed`: as a ModelStreamInferResponse, and said to be the last answer to its request (server/transport/streamed.py).
Bytes encode_response(const Route& route, std::string_view id, const std::vector<OutputData>& outputs, const Timing& timing,
                      size_t* size, bool streamed = false);

// An error as a stream has it. `model` empty: of a request that was not admitted. `version` is the one asked for.
Bytes encode_error(std::string_view text, std::string_view id, std::string_view model, std::string_view version);

}  // namespace podium
