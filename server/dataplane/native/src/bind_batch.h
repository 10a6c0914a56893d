#pragma once

#include <nanobind/nanobind.h>

#include <memory>

#include "bound_plane.h"

namespace podium {

// One version that the fast lane answers for. Immutable; Python makes it once per replica.
struct BoundRoute {
  std::shared_ptr<const Route> route;
};

void bind_batch(nanobind::module_& module);

// See Plane::finish. `parts`: (first, last, outputs or None, error or None). An output is None, an array (row-major, of the wire
// form's type), or (bytes, offsets, dims) where elements have no fixed size. An error is (code, text, trailing).
nanobind::bytes finish_batch(BoundPlane& plane, Taken& taken, nanobind::list parts, int64_t taken_ns, int64_t ran_ns,
                             int64_t features_ns, int64_t lead_ns, int64_t rows, int64_t ran_rows, int64_t took_ns);

}  // namespace podium
