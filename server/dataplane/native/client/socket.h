// Where the server listens, and non-blocking sockets to it.
#pragma once

#include <sys/socket.h>

#include <string>

namespace podium::client {

// A resolved address. `text` is HOST:PORT, [V6]:PORT or unix:PATH. Throws std::runtime_error: not an address, name unknown.
class Target {
 public:
  explicit Target(const std::string& text);

  // What goes into :authority.
  const std::string& authority() const { return authority_; }

  // A socket that is connected, or connecting (writable when it is decided). -1 with errno set if refused at once.
  int connect_socket() const;

 private:
  std::string authority_;
  sockaddr_storage address_{};
  socklen_t length_ = 0;
};

// The outcome of a non-blocking connect: 0 or an errno.
int connect_error(int descriptor);

}  // namespace podium::client
