// What a caller's certificate says, in gRPC's words. **Pure.**
#pragma once

#include "http2.h"

typedef struct x509_st X509;

namespace podium {

// By the names of grpc_security_constants.h, in gRPC's order. Values are whole, NUL bytes and all: "good\0.evil" is not "good".
// A name that cannot be read is left out.
Metadata properties_of(X509* certificate);

}  // namespace podium
