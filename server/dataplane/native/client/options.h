// The command line of podium_client.
#pragma once

#include <cstdint>
#include <string>

namespace podium::client {

struct Options {
  std::string target, model, version, input = "IN", output = "OUT", expected, bodies;
  std::string path = "/inference.GRPCInferenceService/ModelInfer";
  uint64_t bytes = 64, connections = 1, streams = 1, requests = 0, requests_per_connection = 0, seed = 0;
  double rate_per_s = 0.0, seconds = 0.0, deadline_ms = 0.0, stall_s = 10.0, tolerance = 1e-5, settle_s = 0.0, cv = 1.0;
  bool typed = false, timeout_parameter = false;
};

extern const char* const usage;

// Throws std::runtime_error: an unknown option, a missing or unfit value.
Options parse_options(int count, char** words);

}  // namespace podium::client
