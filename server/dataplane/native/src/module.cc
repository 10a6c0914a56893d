// The Python module: each part binds itself.
#include "bindings.h"

NB_MODULE(podium_native, module) {
  module.doc() = "Podium's native data plane. Used by server/dataplane/native and server/transport/native alone.";
  podium::bind_build(module);
  podium::bind_plan(module);
  podium::bind_wire(module);
  podium::bind_plane(module);
  podium::bind_server(module);
}
