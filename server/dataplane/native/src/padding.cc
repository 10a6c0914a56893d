#include "padding.h"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace podium {
namespace {

// Bytes of a message, one after the other.
class Source {
 public:
  Source(const Rope& rope, const Mark& first) : rope_(rope), at_(first) {}

  void copy(size_t size, uint8_t* target) {
    while (size) {
      const Piece& piece = rope_.pieces()[at_.piece];
      size_t part = std::min(piece.size - at_.offset, size);
      std::memcpy(target, piece.data + at_.offset, part);
      target += part;
      size -= part;
      at_.offset += part;
      if (at_.offset == piece.size) at_ = Mark{at_.piece + 1, 0};
    }
  }

 private:
  const Rope& rope_;
  Mark at_;
};

// The rows of one input, from the outermost dimension inwards.
class Placing {
 public:
  Placing(Source source, const std::string& element, int64_t rows, const Dims& dims, const Dims& padded)
      : source_(source), element_(element), innermost_(dims.size()) {
    uniform_ = element.find_first_not_of(element[0]) == std::string::npos;
    dims_[0] = padded_[0] = static_cast<size_t>(rows);
    std::copy(dims.begin(), dims.end(), dims_ + 1);
    std::copy(padded.begin(), padded.end(), padded_ + 1);
    size_t stride = element.size();
    for (size_t axis = dims.size() + 1; axis-- > 0; stride *= padded_[axis]) strides_[axis] = stride;
    // behind the last dimension that is padded everything lies as in the message
    while (innermost_ && dims_[innermost_] == padded_[innermost_]) --innermost_;
  }

  void put(size_t axis, uint8_t* target) {
    size_t filled = dims_[axis] * strides_[axis];
    if (axis == innermost_) {
      source_.copy(filled, target);
    } else {
      for (size_t index = 0; index < dims_[axis]; ++index) put(axis + 1, target + index * strides_[axis]);
    }
    fill(target + filled, (padded_[axis] - dims_[axis]) * strides_[axis]);
  }

 private:
  void fill(uint8_t* target, size_t bytes) const {
    if (uniform_) {
      if (bytes) std::memset(target, element_[0], bytes);
      return;
    }
    for (size_t at = 0; at < bytes; at += element_.size()) std::memcpy(target + at, element_.data(), element_.size());
  }

  Source source_;
  const std::string& element_;
  // of the rows first
  size_t dims_[Dims::most + 1], padded_[Dims::most + 1];
  size_t strides_[Dims::most + 1];  // bytes from one index of a dimension to the next, in the target
  size_t innermost_;
  bool uniform_;
};

}  // namespace

Dims padded(const TensorSpec& spec, const Dims& dims) {
  if (spec.pad_to.empty()) return dims;
  int64_t made[Dims::most];
  for (size_t axis = 0; axis < dims.size(); ++axis) {
    made[axis] = spec.dims[axis] == -1 ? *std::lower_bound(spec.pad_to.begin(), spec.pad_to.end(), dims[axis]) : dims[axis];
  }
  return Dims(made, dims.size());
}

std::vector<int64_t> pad_sizes(const std::vector<TensorSpec>& inputs) {
  std::vector<int64_t> sizes;
  for (const TensorSpec& spec : inputs) sizes.insert(sizes.end(), spec.pad_to.begin(), spec.pad_to.end());
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return sizes;
}

uint32_t size_class(const Route& route, uint64_t mask, const std::vector<InputData>& inputs) {
  if (route.pad_sizes.empty()) return 0;
  int64_t largest = 0;
  for (size_t index = 0; index < inputs.size(); ++index) {
    const TensorSpec& spec = route.inputs[index];
    if (!(mask >> index & 1) || spec.pad_to.empty()) continue;
    Dims dims = padded(spec, inputs[index].dims);
    for (size_t axis = 0; axis < dims.size(); ++axis) {
      if (spec.dims[axis] == -1) largest = std::max(largest, dims[axis]);
    }
  }
  auto found = std::lower_bound(route.pad_sizes.begin(), route.pad_sizes.end(), largest);
  return static_cast<uint32_t>(found - route.pad_sizes.begin());
}

int64_t bytes_of(const TensorSpec& spec, int64_t rows, const Dims& dims) {
  int64_t bytes = item_sizes[static_cast<size_t>(spec.datatype)];
  if (__builtin_mul_overflow(bytes, rows, &bytes)) return -1;
  for (int64_t dim : dims) {
    if (__builtin_mul_overflow(bytes, dim, &bytes)) return -1;
  }
  return bytes;
}

void place(const Rope& message, const InputData& data, const TensorSpec& spec, int64_t rows, uint8_t* target) {
  Dims wanted = padded(spec, data.dims);
  if (std::equal(wanted.begin(), wanted.end(), data.dims.begin())) return message.copy(data.mark, data.size, target);
  Placing(Source(message, data.mark), spec.pad_element, rows, data.dims, wanted).put(0, target);
}

}  // namespace podium
