// What nghttp2 calls while it reads and writes for a Connection.
#pragma once

#include <nghttp2/nghttp2.h>

#include "connection.h"

namespace podium::client {

struct Callbacks {
  // Bytes that wait for the socket before nghttp2 is told to hold back.
  static constexpr size_t out_limit_bytes = 256 << 10;

  // The one table of all sessions; never freed.
  static const nghttp2_session_callbacks* table();

  static ssize_t read_message(nghttp2_session*, int32_t, uint8_t*, size_t length, uint32_t* flags, nghttp2_data_source* source,
                              void*);
  static int send_message(nghttp2_session*, nghttp2_frame*, const uint8_t* frame_head, size_t length,
                          nghttp2_data_source* source, void* user);
  static ssize_t send_bytes(nghttp2_session*, const uint8_t* data, size_t length, int, void* user);
  static int on_header(nghttp2_session*, const nghttp2_frame* frame, const uint8_t* name, size_t name_length,
                       const uint8_t* value, size_t value_length, uint8_t, void*);
  static int on_data(nghttp2_session*, uint8_t, int32_t id, const uint8_t* data, size_t length, void*);
  static int on_frame(nghttp2_session*, const nghttp2_frame* frame, void* user);
  static int on_unsent(nghttp2_session*, const nghttp2_frame* frame, int, void* user);
  static int on_stream_close(nghttp2_session*, int32_t id, uint32_t code, void* user);
};

}  // namespace podium::client
