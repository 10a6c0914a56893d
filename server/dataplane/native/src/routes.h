// What serves right now, as the fast lane needs it: made anew by Python at every change, swapped in whole, never changed.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace podium {

// Order as in server/core/tensors.py, NUMPY_DTYPES.
enum class Datatype : uint8_t { BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, FP16, FP32, FP64, BF16, BYTES };
constexpr const char* datatype_names[] = {"BOOL",  "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16",
                                          "INT32", "INT64", "FP16",   "FP32",   "FP64",   "BF16", "BYTES"};
// Bytes of an element; BYTES has none of its own.
constexpr int64_t item_sizes[] = {1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 4, 8, 2, 0};

// `dims` without the batch dimension where the model batches; -1 is a dimension fixed per request. `pad_to`: the sizes that
// those are executed with, ascending, and `pad_element` the bytes of one element of padding; empty where there is none.
struct TensorSpec {
  std::string name;
  Datatype datatype;
  std::vector<int64_t> dims;
  bool optional;
  std::vector<int64_t> pad_to = {};
  std::string pad_element = {};
};

// Bytes that all answers of a version have in common, in wire form. `head`: its name and number; `tensors[i]`: name and
// datatype of output i, as the fields of InferOutputTensor that come before its shape.
struct ResponseTemplate {
  std::string head;
  std::vector<std::string> tensors;
};

// One version that the fast lane may answer for. `masks`: the sets of inputs (bit i: inputs[i]) that its requests may bring;
// any other is left to Python. `version` is a number in decimal. `entrance`: the number by which its requests enter (plane.h).
struct Route {
  uint64_t entrance;
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

  // As `pad_sizes` (padding.h) makes them of the inputs.
  std::vector<int64_t> pad_sizes = {};

  // What all answers share, as `response_template` (infer_response.h) makes it of the above; to be set before it is shared.
  ResponseTemplate answer;
};

// By model and the caller's version string ("" too). What is not in it is not for the fast lane.
// Ownership: filled by one thread, then read by any number of them.
class Routes {
 public:
  Routes() = default;
  Routes(const Routes&) = delete;  // its keys are views of its own strings
  Routes& operator=(const Routes&) = delete;

  // The last one of a name wins.
  void add(std::string_view model, std::string_view version, std::shared_ptr<const Route> route) {
    auto known = routes_.find(Name{model, version});
    if (known != routes_.end()) {
      known->second = std::move(route);
      return;
    }
    const std::string& own_model = strings_.emplace_back(model);
    const std::string& own_version = strings_.emplace_back(version);
    routes_.emplace(Name{own_model, own_version}, std::move(route));
  }

  // nullptr where there is none; valid as long as this is. Allocates nothing.
  const std::shared_ptr<const Route>* find(std::string_view model, std::string_view version) const {
    auto found = routes_.find(Name{model, version});
    return found == routes_.end() ? nullptr : &found->second;
  }

  size_t size() const { return routes_.size(); }

 private:
  struct Name {
    std::string_view model;
    std::string_view version;
    bool operator==(const Name& other) const { return model == other.model && version == other.version; }
  };
  struct Hash {
    size_t operator()(const Name& name) const {
      std::hash<std::string_view> hash;
      return hash(name.model) * 31 + hash(name.version);
    }
  };
  std::deque<std::string> strings_;  // they never move
  std::unordered_map<Name, std::shared_ptr<const Route>, Hash> routes_;
};

}  // namespace podium
