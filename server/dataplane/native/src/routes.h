// What serves right now, as the fast lane needs it: made anew by Python at every change, swapped in whole, never changed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace podium {

// Order as in server/core/tensors.py, NUMPY_DTYPES.
enum class Datatype : uint8_t { BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, FP16, FP32, FP64, BF16, BYTES };
constexpr const char* datatype_names[] = {"BOOL",  "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16",
                                          "INT32", "INT64", "FP16",   "FP32",   "FP64",   "BF16", "BYTES"};
// Bytes of an element; BYTES has none of its own.
constexpr int64_t item_sizes[] = {1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 4, 8, 2, 0};

// `dims` without the batch dimension where the model batches; -1 is a dimension fixed per request.
struct TensorSpec {
  std::string name;
  Datatype datatype;
  std::vector<int64_t> dims;
  bool optional;
};

// One version that the fast lane may answer for. `masks`: the sets of inputs (bit i: inputs[i]) that its requests may bring;
// any other is left to Python. `version` is a number in decimal.
struct Route {
  uint64_t queue_id;
  std::string model;
  std::string version;
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  int64_t max_batch;
  std::vector<uint64_t> masks;
  int64_t default_timeout_us;
  bool allow_timeout_override;
  int priority_levels;
  int default_priority;
  bool has_features;
};

// By model and the caller's version string ("" too). What is not in it is not for the fast lane.
struct Routes {
  std::unordered_map<std::string, std::unordered_map<std::string, std::shared_ptr<const Route>>> by_model;
};

}  // namespace podium
