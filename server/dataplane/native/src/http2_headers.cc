// The headers of a call: which of them are gRPC's own, which are the handlers', and which make it no call at all.
#include <algorithm>

#include "compression.h"
#include "grpc_text.h"
#include "http2_connection.h"
#include "http2_stream.h"

namespace podium {

namespace {

// what each header costs besides its letters (RFC 9113, 6.5.2)
constexpr size_t header_cost_bytes = 32;

bool begins(std::string_view text, std::string_view with) { return text.substr(0, with.size()) == with; }

int accepted_encodings(std::string_view list) {
  int accepted = 0;
  for (;;) {
    size_t comma = list.find(',');
    std::string_view one = list.substr(0, comma);
    while (!one.empty() && one.front() == ' ') one.remove_prefix(1);
    while (!one.empty() && one.back() == ' ') one.remove_suffix(1);
    if (one == "gzip") accepted |= 1 << gzip_encoding;
    if (one == "deflate") accepted |= 1 << deflate_encoding;
    if (comma == std::string_view::npos) return accepted;
    list.remove_prefix(comma + 1);
  }
}

}  // namespace

void HttpStream::refuse(Code code, std::string text, int http_status) {
  if (refused_status_) return;
  refused_status_ = http_status;
  code_ = code;
  text_ = std::move(text);
}

void HttpStream::encoding_header(std::string_view value) {
  if (value == "gzip") {
    encoding_ = gzip_encoding;
  } else if (value == "deflate") {
    encoding_ = deflate_encoding;
  } else if (value != "identity") {
    refuse(Code::unimplemented, "Messages compressed by " + std::string(value) + " are not taken");
  }
}

// Those that this layer itself reads; handlers do not see them.
void HttpStream::reserved_header(std::string_view name, std::string_view value) {
  if (name == ":path") {
    path = value;
  } else if (name == ":method") {
    is_post_ = value == "POST";
  } else if (name == "content-type") {
    if (!begins(value, "application/grpc")) refuse(Code::unknown, "The content-type is not application/grpc", 415);
    has_type_ = true;
  } else if (name == "grpc-timeout") {
    int64_t timeout_ns = 0;
    if (!parse_timeout(value, &timeout_ns)) return refuse(Code::internal, "Error parsing 'grpc-timeout' metadata");
    deadline_ns = deadline_after(arrival_ns, timeout_ns);
  } else if (name == "grpc-encoding") {
    encoding_header(value);
  } else if (name == "grpc-accept-encoding") {
    accepted_ = accepted_encodings(value);
  }
}

void HttpStream::header(std::string_view name, std::string_view value) {
  uint64_t most = loop_.config().max_metadata_bytes;
  metadata_bytes_ += name.size() + value.size() + header_cost_bytes;
  if (metadata_bytes_ > most) {
    metadata.clear();
    return;
  }
  bool reserved = name[0] == ':' || name == "content-type" || name == "te" || name == "grpc-timeout" ||
                  name == "grpc-encoding" || name == "grpc-accept-encoding" || name == "host";
  if (reserved) {
    reserved_header(name, value);
  } else if (!is_binary(name)) {
    metadata.emplace_back(name, value);
  } else if (!decode_binary(name, value, &metadata)) {
    refuse(Code::internal, "Error parsing '" + std::string(name) + "' metadata: illegal base64 encoding");
  }
}

void HttpStream::headers_ended(bool half_closes) {
  half_closed_ = half_closes;
  uint64_t most = loop_.config().max_metadata_bytes;
  if (metadata_bytes_ > most) {
    refused_status_ = 0;
    refuse(Code::resource_exhausted, "received metadata size exceeds hard limit (" + std::to_string(metadata_bytes_) + " vs. " +
                                         std::to_string(most) + ")");
  } else if (!is_post_) {
    refused_status_ = 0;
    refuse(Code::unknown, "The method is not POST", 405);
  } else if (!has_type_) {
    refuse(Code::unknown, "The content-type is not application/grpc", 415);
  }
  if (refused_status_) {
    finished_ = true;
    receiving_ = false;
    loop_.tallies().streams_refused.add();
    return submit_refusal();
  }
  loop_.tallies().streams_started.add();
  started_ = true;
  loop_.door().started(*this);
  if (half_closes && receiving_) {
    receiving_ = false;
    loop_.door().half_closed(*this);
  }
}

}  // namespace podium
