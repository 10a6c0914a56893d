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
  size_t width = 0;         // FP32 values of the one row
  bool typed = false;       // fp32_contents in the tensor, instead of raw_input_contents
  uint64_t timeout_us = 0;  // the protocol's parameter `timeout`; 0: none
};

// All of a request that stands before its payload. The payload ends every message, so it may be sent from elsewhere.
struct RequestHead {
  std::string bytes;
  size_t id_at = 0;
};
RequestHead request_head(const RequestForm& form);
// The same before a payload that is a message itself: its inputs, outputs and raw contents, without name, id and parameters.
RequestHead body_head(const RequestForm& form, size_t body_bytes);

// The id of a request: 16 hexadecimal digits.
void write_id(uint64_t number, char* to);

// An answer, as views into its bytes: output, datatype, shape and values are those of its last output.
struct Answer {
  std::string_view model, version, id, output, datatype, values;
  std::vector<int64_t> shape;
  int outputs = 0, tensors = 0;
  std::vector<std::string_view> raw;  // raw_output_contents, in order
  bool all_fp32 = true;               // every output's datatype
};

// Reads a length-prefixed answer. False if it is cut, compressed, or no message of this kind; `answer` is then unspecified.
bool read_answer(std::string_view framed, Answer& answer);

}  // namespace podium::client
