// What this was compiled by, and the libraries it has been loaded with.
#pragma once

#include <string>

namespace podium {

// One line for logs and reports: compiler, nghttp2, OpenSSL, zlib, sanitizers if any.
std::string built_with();

}  // namespace podium
