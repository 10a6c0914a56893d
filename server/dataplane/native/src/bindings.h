#pragma once

#include <nanobind/nanobind.h>

namespace podium {

void bind_build(nanobind::module_& module);   // what it was compiled by and with
void bind_plan(nanobind::module_& module);    // Plan: for the differential test against plan.py
void bind_wire(nanobind::module_& module);    // decode and encode: for the differential test against codec.py
void bind_plane(nanobind::module_& module);   // Plane: what server/dataplane/native/plane.py is made of
void bind_server(nanobind::module_& module);  // Server and Call: what server/transport/native is made of

}  // namespace podium
