#include <nanobind/stl/string.h>

#include "bindings.h"
#include "built.h"

namespace podium {

void bind_build(nanobind::module_& module) {
  module.def("built_with", &built_with, "The compiler, and the libraries that are loaded, with their versions.");
}

}  // namespace podium
