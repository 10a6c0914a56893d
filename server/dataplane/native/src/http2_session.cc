// nghttp2's side of a connection: its options, its settings, and what it calls back. No exception passes through it.
#include <new>

#include "http2_connection.h"

namespace podium {

namespace {

// Windows: a caller may send so much before it hears from us. A call's 1 MiB keeps 10 Gbit/s busy at 0.8 ms of round trip, and
// 100 Mbit/s at 80 ms; a large message gets 8 MiB once its prefix told its size. A connection's 16 MiB lets many calls do so at
// once. What waits is bounded by max_buffered_bytes, not by windows.
constexpr int32_t stream_window_bytes = 1 << 20;
constexpr int32_t large_window_bytes = 8 << 20;
constexpr int32_t connection_window_bytes = 16 << 20;
// of frames that callers send: fewer headers in large messages than with HTTP/2's 16 KiB
constexpr uint32_t max_frame_bytes = 128 << 10;
// of calls that callers reset, however old and honest: no more than they could well begin
constexpr uint64_t max_resets = 20'000;
constexpr uint64_t max_resets_per_s = 5'000;
// of frames that we send, where the caller takes as much
constexpr size_t max_sent_frame_bytes = 256 << 10;

}  // namespace

struct SessionCallbacks {
  static HttpConnection& connection(void* user) { return *static_cast<HttpConnection*>(user); }
  static HttpStream* stream(nghttp2_session* session, int32_t id) {
    return static_cast<HttpStream*>(nghttp2_session_get_stream_user_data(session, id));
  }

  template <typename Function>
  static int guarded(Function function) noexcept {
    try {
      return function();
    } catch (...) {
      return NGHTTP2_ERR_CALLBACK_FAILURE;
    }
  }

  static int begin_frame(nghttp2_session*, const nghttp2_frame_hd* header, void* user) {
    HttpConnection& it = connection(user);
    it.heard_ = true;
    if (it.flood_.frame(header->type, header->flags, header->length, it.loop_.now())) it.calm("too_many_frames");
    return it.calmed_ ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
  }

  static int begin_headers(nghttp2_session*, const nghttp2_frame* frame, void* user) {
    if (frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
    return guarded([&] {
      HttpConnection& it = connection(user);
      HttpStream* made = it.begin_stream(frame->hd.stream_id);
      it.headers_ns_ = it.loop_.now();
      it.headers_of_ = frame->hd.stream_id;
      nghttp2_session_set_stream_user_data(it.session_, frame->hd.stream_id, made);
      return 0;
    });
  }

  static int header(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name, size_t name_size,
                    const uint8_t* value, size_t value_size, uint8_t, void*) {
    if (frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
    return guarded([&] {
      HttpStream* it = stream(session, frame->hd.stream_id);
      if (it && name_size) {
        it->header({reinterpret_cast<const char*>(name), name_size}, {reinterpret_cast<const char*>(value), value_size});
      }
      return 0;
    });
  }

  static int data(nghttp2_session* session, uint8_t, int32_t id, const uint8_t* bytes, size_t size, void* user) {
    return guarded([&] {
      HttpConnection& it = connection(user);
      HttpStream* found = stream(session, id);
      if (!found) {
        nghttp2_session_consume_connection(session, size);
        return 0;
      }
      found->data(bytes, size);
      it.missing_ = found->missing();
      it.give_back(*found, size);
      return 0;
    });
  }

  static int frame_received(nghttp2_session* session, const nghttp2_frame* frame, void* user) {
    return guarded([&] {
      HttpConnection& it = connection(user);
      bool ends = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
      switch (frame->hd.type) {
        case NGHTTP2_HEADERS:
          if (frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
            it.headers_ns_ = no_deadline_ns;
            HttpStream* found = stream(session, frame->hd.stream_id);
            if (found) found->headers_ended(ends);
            return 0;
          }
          [[fallthrough]];
        case NGHTTP2_DATA:
          if (HttpStream* found = ends ? stream(session, frame->hd.stream_id) : nullptr) found->half_closed();
          return 0;
        case NGHTTP2_PING:
          it.pinged(frame);
          return it.calmed_ ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
        case NGHTTP2_RST_STREAM:
          it.reset_by_caller(stream(session, frame->hd.stream_id));
          return it.calmed_ ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
        default:
          return 0;
      }
    });
  }

  static int frame_sent(nghttp2_session* session, const nghttp2_frame* frame, void* user) {
    HttpConnection& it = connection(user);
    switch (frame->hd.type) {
      case NGHTTP2_HEADERS: {
        it.sent_data();
        if (!(frame->hd.flags & NGHTTP2_FLAG_END_STREAM)) return 0;
        it.flood_.answered();
        HttpStream* found = stream(session, frame->hd.stream_id);
        // it is answered, so it need send no more (RFC 9113, 8.1)
        if (found && !found->caller_done()) nghttp2_submit_rst_stream(session, 0, frame->hd.stream_id, NGHTTP2_NO_ERROR);
        return 0;
      }
      case NGHTTP2_DATA:
      case NGHTTP2_WINDOW_UPDATE:
        it.sent_data();
        return 0;
      default:
        return 0;
    }
  }

  static int stream_closed(nghttp2_session* session, int32_t id, uint32_t, void* user) {
    return guarded([&] {
      HttpStream* found = stream(session, id);
      if (found) connection(user).end_stream(*found);
      return 0;
    });
  }

  static int invalid_frame(nghttp2_session*, const nghttp2_frame*, int, void* user) {
    connection(user).loop_.tallies().protocol_errors.add();
    return 0;
  }

  // Headers that cannot be encoded within nghttp2's bounds: without them the call would never end.
  static int frame_not_sent(nghttp2_session* session, const nghttp2_frame* frame, int, void*) {
    if (frame->hd.type == NGHTTP2_HEADERS && stream(session, frame->hd.stream_id)) {
      nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_INTERNAL_ERROR);
    }
    return 0;
  }

  static int send_data(nghttp2_session*, nghttp2_frame*, const uint8_t* header, size_t size, nghttp2_data_source* source,
                       void* user) {
    return guarded([&]() -> int {
      HttpConnection& it = connection(user);
      if (it.output_.pending() >= HttpConnection::high_water_bytes) return NGHTTP2_ERR_WOULDBLOCK;
      static_cast<HttpStream*>(source->ptr)->transmit(header, size, &it.output_);
      return 0;
    });
  }

  static ssize_t read_length(nghttp2_session*, uint8_t, int32_t, int32_t session_window, int32_t stream_window,
                             uint32_t max_frame, void*) {
    size_t window = static_cast<size_t>(std::min(session_window, stream_window));
    return static_cast<ssize_t>(std::min({window, static_cast<size_t>(max_frame), max_sent_frame_bytes}));
  }
};

namespace {

struct Shared {
  nghttp2_session_callbacks* callbacks = nullptr;
  nghttp2_option* options = nullptr;

  Shared() {
    if (nghttp2_session_callbacks_new(&callbacks) || nghttp2_option_new(&options)) throw std::bad_alloc();
    nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, SessionCallbacks::begin_frame);
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, SessionCallbacks::begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, SessionCallbacks::header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, SessionCallbacks::data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, SessionCallbacks::frame_received);
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, SessionCallbacks::frame_sent);
    nghttp2_session_callbacks_set_on_frame_not_send_callback(callbacks, SessionCallbacks::frame_not_sent);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, SessionCallbacks::stream_closed);
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(callbacks, SessionCallbacks::invalid_frame);
    nghttp2_session_callbacks_set_send_data_callback(callbacks, SessionCallbacks::send_data);
    nghttp2_session_callbacks_set_data_source_read_length_callback(callbacks, SessionCallbacks::read_length);
    nghttp2_option_set_no_auto_window_update(options, 1);
    nghttp2_option_set_no_closed_streams(options, 1);
    // its own limit of 33 resets a second would end honest callers with tight deadlines; FloodPolicy tells those from attacks
    nghttp2_option_set_stream_reset_rate_limit(options, max_resets, max_resets_per_s);
    // trailers may repeat what a handler wants to tell; HTTP/2 has no limit, the caller's is what counts
    nghttp2_option_set_max_send_header_block_length(options, 1 << 20);
  }
};

const Shared& shared() {
  static const Shared made;  // never freed: connections of any server use it
  return made;
}

}  // namespace

void HttpConnection::make_session() {
  const Shared& with = shared();
  if (nghttp2_session_server_new3(&session_, with.callbacks, this, with.options, loop_.pool().memory())) throw std::bad_alloc();
  submit_settings();
}

void HttpConnection::submit_settings() {
  const HttpConfig& config = loop_.config();
  constexpr uint64_t most = UINT32_MAX;
  std::vector<nghttp2_settings_entry> settings = {
      {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, static_cast<uint32_t>(stream_window_bytes)},
      {NGHTTP2_SETTINGS_MAX_FRAME_SIZE, max_frame_bytes},
      {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, static_cast<uint32_t>(std::min(config.max_metadata_bytes, most))},
      // its trees of priorities cost time, and memory that callers decide about (RFC 9218)
      {NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, 1}};
  if (config.max_concurrent_streams) {
    auto streams = static_cast<uint32_t>(std::min(config.max_concurrent_streams, most));
    settings.push_back({NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, streams});
  }
  if (nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, settings.data(), settings.size()) ||
      nghttp2_session_set_local_window_size(session_, NGHTTP2_FLAG_NONE, 0, connection_window_bytes)) {
    throw std::bad_alloc();
  }
}

void HttpConnection::widen(HttpStream& stream, size_t message_bytes) {
  if (message_bytes <= static_cast<size_t>(stream_window_bytes) || stream.half_closed_) return;
  nghttp2_session_set_local_window_size(session_, NGHTTP2_FLAG_NONE, stream.id(), large_window_bytes);
  touch();
}

void HttpConnection::open_window(HttpStream& stream, size_t size) {
  if (!size) return;
  nghttp2_session_consume_stream(session_, stream.id(), size);
  touch();
}

void HttpConnection::give_back(HttpStream& stream, size_t size) {
  if (!size) return;
  if (stream.takes_data()) {
    nghttp2_session_consume(session_, stream.id(), size);
  } else {
    stream.held_back_ += size;
    nghttp2_session_consume_connection(session_, size);
  }
  touch();
}

}  // namespace podium
