#include "callbacks.h"

#include <algorithm>
#include <new>

namespace podium::client {

namespace {

Call* call_of(nghttp2_session* session, int32_t id) {
  return static_cast<Call*>(nghttp2_session_get_stream_user_data(session, id));
}

// A decimal of a header, or -1: what is no number must not pass for status 0.
int number(std::string_view text) {
  if (text.empty() || text.size() > 9) return -1;
  int value = 0;
  for (const char digit : text) {
    if (digit < '0' || digit > '9') return -1;
    value = value * 10 + (digit - '0');
  }
  return value;
}

}  // namespace

const nghttp2_session_callbacks* Callbacks::table() {
  static nghttp2_session_callbacks* const made = [] {
    nghttp2_session_callbacks* all = nullptr;
    if (nghttp2_session_callbacks_new(&all) != 0) throw std::bad_alloc();
    nghttp2_session_callbacks_set_send_callback(all, send_bytes);
    nghttp2_session_callbacks_set_send_data_callback(all, send_message);
    nghttp2_session_callbacks_set_on_header_callback(all, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(all, on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(all, on_frame);
    nghttp2_session_callbacks_set_on_frame_not_send_callback(all, on_unsent);
    nghttp2_session_callbacks_set_on_stream_close_callback(all, on_stream_close);
    return all;
  }();
  return made;
}

ssize_t Callbacks::read_message(nghttp2_session*, int32_t, uint8_t*, size_t length, uint32_t* flags,
                                nghttp2_data_source* source, void*) {
  const Call& call = *static_cast<const Call*>(source->ptr);
  const size_t left = call.head.size() + call.tail.size() - call.sent_bytes;
  *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
  if (left <= length) *flags |= NGHTTP2_DATA_FLAG_EOF;
  return static_cast<ssize_t>(std::min(left, length));
}

int Callbacks::send_message(nghttp2_session*, nghttp2_frame*, const uint8_t* frame_head, size_t length,
                            nghttp2_data_source* source, void* user) {
  auto& out = static_cast<Connection*>(user)->out_;
  if (out.size() >= out_limit_bytes) return NGHTTP2_ERR_WOULDBLOCK;
  Call& call = *static_cast<Call*>(source->ptr);
  out.append(reinterpret_cast<const char*>(frame_head), 9);
  if (call.sent_bytes < call.head.size()) {
    const size_t part = std::min(length, call.head.size() - call.sent_bytes);
    out.append(call.head, call.sent_bytes, part);
    call.sent_bytes += part;
    length -= part;
  }
  if (length > 0) out.append(call.tail, call.sent_bytes - call.head.size(), length);
  call.sent_bytes += length;
  return 0;
}

ssize_t Callbacks::send_bytes(nghttp2_session*, const uint8_t* data, size_t length, int, void* user) {
  auto& out = static_cast<Connection*>(user)->out_;
  if (out.size() >= out_limit_bytes) return NGHTTP2_ERR_WOULDBLOCK;
  out.append(reinterpret_cast<const char*>(data), length);
  return static_cast<ssize_t>(length);
}

int Callbacks::on_header(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name, size_t name_length,
                         const uint8_t* value, size_t value_length, uint8_t, void*) {
  const std::string_view key(reinterpret_cast<const char*>(name), name_length);
  const bool status = key == ":status", grpc_status = key == "grpc-status", grpc_message = key == "grpc-message";
  if (!status && !grpc_status && !grpc_message) return 0;
  Call* const call = call_of(session, frame->hd.stream_id);
  if (!call) return 0;
  const std::string_view text(reinterpret_cast<const char*>(value), value_length);
  if (status) call->http_status = number(text);
  if (grpc_status) call->grpc_status = number(text);
  if (grpc_message) call->grpc_message.assign(text);
  return 0;
}

int Callbacks::on_data(nghttp2_session* session, uint8_t, int32_t id, const uint8_t* data, size_t length, void*) {
  if (Call* const call = call_of(session, id)) call->body.append(reinterpret_cast<const char*>(data), length);
  return 0;
}

int Callbacks::on_frame(nghttp2_session* session, const nghttp2_frame* frame, void* user) {
  auto& connection = *static_cast<Connection*>(user);
  const uint8_t type = frame->hd.type;
  if (type == NGHTTP2_GOAWAY) {
    connection.leaving_ = true;
    connection.last_stream_id_ = frame->goaway.last_stream_id;
  } else if ((type == NGHTTP2_DATA || type == NGHTTP2_HEADERS) && (frame->hd.flags & NGHTTP2_FLAG_END_STREAM)) {
    if (Call* const call = call_of(session, frame->hd.stream_id)) call->complete = true;
  }
  return 0;
}

// A request that was submitted and then not allowed on the wire (after a GOAWAY): its stream never was, so it never closes.
int Callbacks::on_unsent(nghttp2_session*, const nghttp2_frame* frame, int, void* user) {
  auto& connection = *static_cast<Connection*>(user);
  if (frame->hd.type != NGHTTP2_HEADERS) return 0;
  const auto found = std::find_if(connection.calls_.begin(), connection.calls_.end(),
                                  [&](const Call* call) { return call->stream_id == frame->hd.stream_id; });
  if (found != connection.calls_.end()) connection.end(**found, Ending::refused, NGHTTP2_REFUSED_STREAM);
  return 0;
}

int Callbacks::on_stream_close(nghttp2_session* session, int32_t id, uint32_t code, void* user) {
  Call* const call = call_of(session, id);
  if (!call) return 0;
  Ending ending = Ending::reset;
  if (call->complete) ending = Ending::answered;
  if (code == NGHTTP2_REFUSED_STREAM) ending = Ending::refused;
  static_cast<Connection*>(user)->end(*call, ending, code);
  return 0;
}

}  // namespace podium::client
