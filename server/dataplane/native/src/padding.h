// Free dimensions that are padded up to a few sizes: TensorSpec.padded (server/core/tensors.py) and `place`
// (server/dataplane/rows.py). Rows are padded by their bucket, in Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "infer_request.h"
#include "rope.h"
#include "routes.h"

namespace podium {

// The dims that an input with these is executed with. Free ones must not be larger than the largest size.
Dims padded(const TensorSpec& spec, const Dims& dims);

// Every size that a dimension of these is padded to, ascending: one size class each. Empty where nothing is padded.
std::vector<int64_t> pad_sizes(const std::vector<TensorSpec>& inputs);

// Where among the route's sizes the largest is that an input of this request is padded to.
uint32_t size_class(const Route& route, uint64_t mask, const std::vector<InputData>& inputs);

// Bytes of so many rows of these dims; -1 beyond all memory. Not of BYTES.
int64_t bytes_of(const TensorSpec& spec, int64_t rows, const Dims& dims);

// Writes a request's rows of one input to `target`, which has room for as many of its padded dims: each byte of it once, from
// the message or as padding.
void place(const Rope& message, const InputData& data, const TensorSpec& spec, int64_t rows, uint8_t* target);

}  // namespace podium
