// Requests from a file: whole messages of any model, sent in turn.
#pragma once

#include <memory>
#include <string>

#include "payload.h"

namespace podium::client {

// The file: "PDBY" and, as little-endian uint32, the count of bodies; then for each its length and that of its answer, the body
// and the answer. A body is a ModelInferRequest without name, version, id and parameters, which are written before it. An
// answer is all of raw_output_contents, one after the other; an empty one is not known, and what comes is not compared.
// FP32 answers are right within `tolerance` (absolute), others when they are equal.
// Throws std::runtime_error: no such file, not of this form, a length that disagrees.
std::unique_ptr<Payload> body_payload(RequestForm form, const std::string& path, double tolerance);

}  // namespace podium::client
