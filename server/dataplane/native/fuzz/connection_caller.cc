#include "connection_caller.h"

#include <nghttp2/nghttp2.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <utility>

#include "require.h"

namespace podium {

void FrameCheck::feed(const uint8_t* bytes, size_t size) {
  constexpr size_t most_bytes = 256 << 10;
  while (size) {
    if (!left_) {
      header_[known_++] = *bytes++;
      --size;
      if (known_ < sizeof header_) continue;
      known_ = 0;
      left_ = static_cast<size_t>(header_[0]) << 16 | static_cast<size_t>(header_[1]) << 8 | header_[2];
      require(left_ <= most_bytes, "a sent frame's length");
      require(header_[3] <= NGHTTP2_CONTINUATION && header_[5] < 0x80, "a sent frame's header");
    }
    size_t part = std::min(left_, size);
    left_ -= part;
    bytes += part;
    size -= part;
  }
}

CallerEnd::CallerEnd(int send_bytes) {
  int fds[2];
  require(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), "a pair of sockets");
  fd_ = fds[0];
  server_fd_ = fds[1];
  if (send_bytes) setsockopt(server_fd_, SOL_SOCKET, SO_SNDBUF, &send_bytes, sizeof send_bytes);
}

CallerEnd::~CallerEnd() {
  close();
  if (server_fd_ >= 0) ::close(server_fd_);
}

int CallerEnd::take_server_end() { return std::exchange(server_fd_, -1); }

bool CallerEnd::write(const char* bytes, size_t size, const std::function<void()>& turn) {
  for (int idle = 0; size && idle < 4;) {
    ssize_t count = ::send(fd_, bytes, size, MSG_NOSIGNAL);
    if (count < 0 && errno != EAGAIN) return false;
    if (count < 0) {
      ++idle;
      turn();
      continue;
    }
    idle = 0;
    bytes += count;
    size -= static_cast<size_t>(count);
  }
  return !size;
}

std::string CallerEnd::read(bool kept) {
  static uint8_t buffer[64 << 10];
  std::string text;
  for (;;) {
    ssize_t count = ::recv(fd_, buffer, sizeof buffer, 0);
    if (count <= 0) return text;
    check_.feed(buffer, static_cast<size_t>(count));
    if (kept) text.append(reinterpret_cast<const char*>(buffer), static_cast<size_t>(count));
  }
}

void CallerEnd::half_close() { ::shutdown(fd_, SHUT_WR); }

void CallerEnd::close() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

namespace {

struct Answer {
  std::string http_status, grpc_status, body;
  bool closed = false;
};

const std::string probe_message("\0\0\0\0\5probe", 10);

nghttp2_nv pair(const char* name, const char* value) {
  return {reinterpret_cast<uint8_t*>(const_cast<char*>(name)), reinterpret_cast<uint8_t*>(const_cast<char*>(value)),
          std::strlen(name), std::strlen(value), NGHTTP2_NV_FLAG_NONE};
}

nghttp2_session* client_session(Answer* answer) {
  nghttp2_session_callbacks* callbacks = nullptr;
  require(!nghttp2_session_callbacks_new(&callbacks), "memory");
  nghttp2_session_callbacks_set_on_header_callback(
      callbacks, [](nghttp2_session*, const nghttp2_frame*, const uint8_t* name, size_t name_size, const uint8_t* value,
                    size_t size, uint8_t, void* user) {
        auto* to = static_cast<Answer*>(user);
        std::string is(reinterpret_cast<const char*>(name), name_size), text(reinterpret_cast<const char*>(value), size);
        if (is == ":status") to->http_status = text;
        if (is == "grpc-status") to->grpc_status = text;
        return 0;
      });
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(
      callbacks, [](nghttp2_session*, uint8_t, int32_t, const uint8_t* bytes, size_t size, void* user) {
        static_cast<Answer*>(user)->body.append(reinterpret_cast<const char*>(bytes), size);
        return 0;
      });
  nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, [](nghttp2_session*, int32_t, uint32_t error, void* user) {
    static_cast<Answer*>(user)->closed = !error;
    return 0;
  });
  nghttp2_session* session = nullptr;
  require(!nghttp2_session_client_new(&session, callbacks, answer), "memory");
  nghttp2_session_callbacks_del(callbacks);
  return session;
}

}  // namespace

void call_well_formed(CallerEnd* end, const std::function<void()>& turn) {
  Answer answer;
  nghttp2_session* session = client_session(&answer);
  const nghttp2_nv headers[] = {pair(":method", "POST"),
                                pair(":scheme", "http"),
                                pair(":path", "/unary"),
                                pair(":authority", "here"),
                                pair("content-type", "application/grpc"),
                                pair("te", "trailers")};
  nghttp2_data_provider body{};
  body.read_callback = [](nghttp2_session*, int32_t, uint8_t* to, size_t, uint32_t* flags, nghttp2_data_source*, void*) {
    std::memcpy(to, probe_message.data(), probe_message.size());
    *flags = NGHTTP2_DATA_FLAG_EOF;
    return static_cast<ssize_t>(probe_message.size());
  };
  nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, nullptr, 0);
  require(nghttp2_submit_request(session, nullptr, headers, std::size(headers), &body, nullptr) > 0, "memory");
  constexpr int most_turns = 10;
  for (int turns = 0; turns < most_turns && !answer.closed; ++turns) {
    const uint8_t* bytes = nullptr;
    for (ssize_t size; (size = nghttp2_session_mem_send(session, &bytes)) > 0;) {
      require(end->write(reinterpret_cast<const char*>(bytes), static_cast<size_t>(size), turn), "a well-formed call is read");
    }
    turn();
    std::string got = end->read(true);
    ssize_t parsed = nghttp2_session_mem_recv(session, reinterpret_cast<const uint8_t*>(got.data()), got.size());
    require(parsed == static_cast<ssize_t>(got.size()), "the answer is HTTP/2");
  }
  require(answer.closed && answer.http_status == "200" && answer.grpc_status == "0", "a well-formed call ends well");
  require(answer.body == probe_message, "a well-formed call is echoed");
  nghttp2_session_del(session);
}

}  // namespace podium
