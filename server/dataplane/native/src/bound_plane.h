#pragma once

#include <nanobind/nanobind.h>

#include "plane.h"

namespace podium {

// A plane whose last holder is Python.
class BoundPlane final : public Plane {
 public:
  using Plane::Plane;
  ~BoundPlane() {
    // its timer may be about to tell Python something, and wait for the interpreter
    nanobind::gil_scoped_release interpreter;
    stop();
  }
};

}  // namespace podium
