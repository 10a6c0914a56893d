#include "bindings.h"

namespace podium {

void bind_plane(nanobind::module_&) {}

}  // namespace podium
