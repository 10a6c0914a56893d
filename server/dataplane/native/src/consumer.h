// Who a call says that it is, for counting: consumer_named of server/core/requests.py.
#pragma once

#include <string>

#include "http2.h"

namespace podium {

// The header `podium-consumer`, the last one where there are several; else, with `subjects`, the name in the certificate. "":
// nobody; "invalid": something that is no name.
std::string consumer_of(const Stream& stream, bool subjects);

}  // namespace podium
