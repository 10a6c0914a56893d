// The caller's end of a fuzzed connection, and a well-behaved caller that sees whether the server still serves.
#pragma once

#include <functional>
#include <string>

namespace podium {

// Whether bytes, in whatever pieces, are frames of HTTP/2 as a server may send them.
class FrameCheck {
 public:
  void feed(const uint8_t* bytes, size_t size);

 private:
  uint8_t header_[9];
  size_t known_ = 0;  // of the header
  size_t left_ = 0;   // of the payload
};

// One end of a pair of sockets. Nothing waits: `turn` lets the server work.
class CallerEnd {
 public:
  // `send_bytes`: what the server's socket takes unread; 0 for the system's default. The server's end is for `take_server_end`.
  explicit CallerEnd(int send_bytes);
  ~CallerEnd();
  CallerEnd(const CallerEnd&) = delete;
  CallerEnd& operator=(const CallerEnd&) = delete;
  int take_server_end();

  // Whether it took all.
  bool write(const char* bytes, size_t size, const std::function<void()>& turn);
  // Reads what is there, and returns it where `kept`.
  std::string read(bool kept = false);
  void half_close();
  void close();

 private:
  int fd_ = -1;
  int server_fd_ = -1;
  FrameCheck check_;
};

// A unary call that is answered with what it sent; aborts if it is not.
void call_well_formed(CallerEnd* end, const std::function<void()>& turn);

}  // namespace podium
