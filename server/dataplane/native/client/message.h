// ModelInfer messages on the wire: written by hand for requests, read by hand for answers, with the gRPC prefix of five bytes.
// Own code, not the server's: whoever verifies must not share what it verifies.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace podium::client {

constexpr size_t prefix_bytes = 5;
constexpr size_t id_bytes = 16;

struct RequestForm {
  std::string model, version, input;
  size_t width = 0;    // FP32 values of the one row
  bool typed = false;  // fp32_contents in the tensor, instead of raw_input_contents
};

// All of a request that stands before its payload. The payload ends every message, so it may be sent from elsewhere.
struct RequestHead {
  std::string bytes;
  size_t id_at = 0;
};
RequestHead request_head(const RequestForm& form);

// The id of a request: 16 hexadecimal digits.
void write_id(uint64_t number, char* to);

// An answer of one output, as views into its bytes.
struct Answer {
  std::string_view model, version, id, output, datatype, values;
  std::vector<int64_t> shape;
  int outputs = 0, tensors = 0;
};

// Reads a length-prefixed answer. False if it is cut, compressed, or no message of this kind; `answer` is then unspecified.
bool read_answer(std::string_view framed, Answer& answer);

}  // namespace podium::client
