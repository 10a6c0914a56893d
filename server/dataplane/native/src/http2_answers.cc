// What a call sends: headers before its first message, messages as frames of data, trailers after the last.
#include <algorithm>
#include <array>
#include <utility>

#include "compression.h"
#include "grpc_text.h"
#include "http2_connection.h"
#include "http2_stream.h"

namespace podium {

namespace {

// Below, copying is cheaper than one more piece for the system call, and for TLS records.
constexpr size_t held_from_bytes = 4096;

struct HeldBytes final : Counted {
  explicit HeldBytes(Bytes&& given) : bytes(std::move(given)) {}
  Bytes bytes;
};

constexpr uint8_t constant = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE;

nghttp2_nv pair(std::string_view name, std::string_view value, uint8_t flags) {
  return {reinterpret_cast<uint8_t*>(const_cast<char*>(name.data())),
          reinterpret_cast<uint8_t*>(const_cast<char*>(value.data())), name.size(), value.size(), flags};
}

const nghttp2_nv status_200 = pair(":status", "200", constant);
const nghttp2_nv type_grpc = pair("content-type", "application/grpc", constant);
const nghttp2_nv takes = pair("grpc-accept-encoding", "identity, deflate, gzip", constant);

constexpr std::array<std::string_view, 17> codes{"0", "1",  "2",  "3",  "4",  "5",  "6",  "7", "8",
                                                 "9", "10", "11", "12", "13", "14", "15", "16"};

// A number that is no code is what the C core makes of it: unknown.
nghttp2_nv status(Code code) {
  auto number = static_cast<size_t>(code);
  return pair("grpc-status", codes[number < codes.size() ? number : static_cast<size_t>(Code::unknown)], constant);
}

std::string_view encoding_name(int encoding) { return encoding == gzip_encoding ? "gzip" : "deflate"; }

bool letter(char character) {
  return (character >= 'a' && character <= 'z') || (character >= '0' && character <= '9') || character == '-' ||
         character == '_' || character == '.';
}

// What this layer says itself. Others that begin with "grpc-" are handlers' to send: grpc-retry-pushback-ms is one.
bool reserved(std::string_view name) {
  return name == "grpc-status" || name == "grpc-message" || name == "grpc-encoding" || name == "grpc-accept-encoding" ||
         name == "grpc-timeout" || name == "content-type" || name == "te";
}

// A name that is lower case and nobody else's, a value that is printable: all else would end the caller's connection.
bool sendable(std::string_view name, std::string_view value) {
  if (name.empty() || reserved(name) || !std::all_of(name.begin(), name.end(), letter)) return false;
  return is_binary(name) ||
         std::all_of(value.begin(), value.end(), [](char character) { return character >= 0x20 && character <= 0x7e; });
}

ssize_t offer_data(nghttp2_session*, int32_t, uint8_t*, size_t length, uint32_t* flags, nghttp2_data_source* source, void*) {
  ptrdiff_t offered;
  try {
    offered = static_cast<HttpStream*>(source->ptr)->offer(length, flags);
  } catch (...) {
    return NGHTTP2_ERR_CALLBACK_FAILURE;
  }
  return offered < 0 ? static_cast<ssize_t>(NGHTTP2_ERR_DEFERRED) : offered;
}

// Those of a handler, but what cannot be sent. `encoded` holds what `headers` then point into, and must not grow.
void add_metadata(const Metadata& metadata, std::vector<std::string>* encoded, std::vector<nghttp2_nv>* headers) {
  encoded->reserve(metadata.size());
  for (const auto& [name, value] : metadata) {
    if (!sendable(name, value)) continue;
    if (is_binary(name)) encoded->push_back(base64_encode(value));
    headers->push_back(pair(name, is_binary(name) ? encoded->back() : value, NGHTTP2_NV_FLAG_NONE));
  }
}

}  // namespace

void HttpStream::submit_headers(const Metadata& initial) {
  headers_sent_ = true;
  int encoding = loop_.config().compression;
  encoding = encoding && (accepted_ & 1 << encoding) ? encoding : 0;
  sent_encoding_ = encoding;
  std::array<nghttp2_nv, 3> few{status_200, type_grpc,
                                encoding ? pair("grpc-encoding", encoding_name(encoding), constant) : nghttp2_nv{}};
  const nghttp2_nv* headers = few.data();
  size_t count = encoding ? 3 : 2;
  std::vector<std::string> encoded;
  std::vector<nghttp2_nv> many;
  if (!initial.empty()) {
    many.assign(few.begin(), few.begin() + count);
    add_metadata(initial, &encoded, &many);
    headers = many.data();
    count = many.size();
  }
  nghttp2_data_provider provider{{}, offer_data};
  provider.source.ptr = this;
  if (nghttp2_submit_response(connection_->session(), id_, headers, count, &provider)) throw std::bad_alloc();
}

void HttpStream::submit_end(bool trailers_only) {
  if (!trailers_only && text_.empty() && trailing_.empty()) {
    const nghttp2_nv only = status(code_);
    if (nghttp2_submit_trailer(connection_->session(), id_, &only, 1)) throw std::bad_alloc();
    return;
  }
  std::vector<nghttp2_nv> headers;
  headers.reserve(4 + trailing_.size());
  if (trailers_only) headers.insert(headers.end(), {status_200, type_grpc});
  headers.push_back(status(code_));
  std::string text = text_.empty() ? std::string() : percent_encode(text_);
  if (!text.empty()) headers.push_back(pair("grpc-message", text, NGHTTP2_NV_FLAG_NO_COPY_NAME));
  std::vector<std::string> encoded;
  add_metadata(trailing_, &encoded, &headers);
  nghttp2_session* session = connection_->session();
  int failed = trailers_only ? nghttp2_submit_response(session, id_, headers.data(), headers.size(), nullptr)
                             : nghttp2_submit_trailer(session, id_, headers.data(), headers.size());
  if (failed) throw std::bad_alloc();
}

void HttpStream::submit_refusal() {
  const std::string status_text = std::to_string(refused_status_);
  const std::string text = percent_encode(text_);
  headers_sent_ = true;
  const std::array<nghttp2_nv, 5> headers{pair(":status", status_text, NGHTTP2_NV_FLAG_NONE), type_grpc, status(code_),
                                          pair("grpc-message", text, NGHTTP2_NV_FLAG_NONE), takes};
  if (nghttp2_submit_response(connection_->session(), id_, headers.data(), headers.size(), nullptr)) throw std::bad_alloc();
  connection_->touch();
}

void HttpStream::begin(const Metadata& initial) {
  if (!open() || headers_sent_) return;
  submit_headers(initial);
  connection_->touch();
}

void HttpStream::send(Bytes message) {
  if (!open() || !message.size) return;
  if (!connection_->takes_answers()) return;
  if (!headers_sent_) submit_headers({});
  if (sent_encoding_) message = deflate_message(std::move(message), sent_encoding_);
  if (!unsent_) progress_ns_ = loop_.now();
  const uint8_t* data = message.data.get();
  size_t size = message.size;
  queue_.push_back(Sending{std::move(message), Ref<Counted>(), data, size});
  unsent_ += size;
  connection_->unsent(static_cast<ptrdiff_t>(size));
  connection_->resume(*this);
}

void HttpStream::finish(Code code, std::string_view text, const Metadata& trailing) {
  if (!open()) return;
  finished_ = true;
  code_ = code;
  text_ = text;
  trailing_ = trailing;
  loop_.timers().cancel(deadline_);
  stop_receiving();
  if (headers_sent_) {
    connection_->resume(*this);
  } else {
    headers_sent_ = true;
    submit_end(true);
    connection_->touch();
  }
}

ptrdiff_t HttpStream::offer(size_t most, uint32_t* flags) {
  size_t size = std::min(most, unsent_);
  if (!size && !finished_) {
    deferred_ = true;
    return -1;
  }
  *flags = NGHTTP2_DATA_FLAG_NO_COPY;
  if (finished_ && size == unsent_) {
    *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
    submit_end(false);
  }
  return static_cast<ptrdiff_t>(size);
}

void HttpStream::transmit(const uint8_t* frame_header, size_t size, Output* output) {
  constexpr size_t frame_header_bytes = 9;
  output->copy(frame_header, frame_header_bytes);
  unsent_ -= size;
  connection_->unsent(-static_cast<ptrdiff_t>(size));
  while (size) {
    Sending& sending = queue_[head_];
    size_t part = std::min(size, sending.size - sent_of_head_);
    const uint8_t* data = sending.data + sent_of_head_;
    if (part < held_from_bytes || output->joins()) {
      output->copy(data, part);
      loop_.tallies().bytes_copied.add(part);
    } else {
      if (!sending.held) sending.held = Ref<Counted>::take(new HeldBytes(std::move(sending.bytes)));
      output->hold(sending.held, data, part);
    }
    size -= part;
    sent_of_head_ += part;
    if (sent_of_head_ < sending.size) continue;
    sending = Sending{};
    sent_of_head_ = 0;
    if (++head_ == queue_.size()) {
      queue_.clear();
      head_ = 0;
    }
  }
  progress_ns_ = loop_.now();
  if (!unsent_ && !finished_) connection_->writable(*this);
}

}  // namespace podium
