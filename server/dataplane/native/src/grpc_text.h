// gRPC's ways to put things into headers: texts, bytes, times. **Pure.**
//
// Source: grpc/grpc, doc/PROTOCOL-HTTP2.md; where that is open, what gRPC's C core does.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "http2.h"

namespace podium {

// A grpc-message: printable ASCII without '%' stays, each other byte becomes %XX.
std::string percent_encode(std::string_view text);

// The value of a "-bin" header, without padding as the C core sends it.
std::string base64_encode(std::string_view bytes);

// Appends the value of a received "-bin" header to `metadata`: one entry for each item of its comma-separated list, with and
// without padding. False, and nothing appended, where it is not base64: gRPC's servers answer INTERNAL, "Error parsing '<name>'
// metadata: illegal base64 encoding". They refuse lists too, which the protocol tells them to split.
bool decode_binary(std::string_view name, std::string_view value, Metadata* metadata);

// Whether a header's value is base64.
inline bool is_binary(std::string_view name) { return name.size() >= 4 && name.substr(name.size() - 4) == "-bin"; }

// A grpc-timeout, as the C core reads it: units below a millisecond are rounded up to whole ones, spaces may stand around the
// number, more than a thousand million of a unit is for ever (no_deadline_ns). False where it is none: gRPC's servers answer
// INTERNAL, "Error parsing 'grpc-timeout' metadata". Of several the last one counts.
bool parse_timeout(std::string_view text, int64_t* timeout_ns);

// `arrival_ns + timeout_ns`, or no_deadline_ns.
int64_t deadline_after(int64_t arrival_ns, int64_t timeout_ns);

}  // namespace podium
