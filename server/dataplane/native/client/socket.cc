#include "socket.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace podium::client {

Target::Target(const std::string& text) : authority_(text) {
  if (text.rfind("unix:", 0) == 0) {
    const std::string path = text.substr(5);
    auto* address = reinterpret_cast<sockaddr_un*>(&address_);
    if (path.empty() || path.size() >= sizeof(address->sun_path)) throw std::runtime_error("not a path of a socket: " + text);
    address->sun_family = AF_UNIX;
    std::memcpy(address->sun_path, path.c_str(), path.size() + 1);
    length_ = sizeof(sockaddr_un);
    authority_ = "localhost";
    return;
  }
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos) throw std::runtime_error("neither HOST:PORT nor unix:PATH: " + text);
  std::string host = text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  const int error = getaddrinfo(host.c_str(), text.c_str() + colon + 1, &hints, &found);
  if (error != 0) throw std::runtime_error(text + ": " + gai_strerror(error));
  std::memcpy(&address_, found->ai_addr, found->ai_addrlen);
  length_ = found->ai_addrlen;
  freeaddrinfo(found);
}

int Target::connect_socket() const {
  const int descriptor = socket(address_.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (descriptor < 0) return -1;
  if (address_.ss_family != AF_UNIX) {
    const int on = 1;
    setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }
  const auto* address = reinterpret_cast<const sockaddr*>(&address_);
  if (connect(descriptor, address, length_) == 0 || errno == EINPROGRESS) return descriptor;
  const int reason = errno;
  close(descriptor);
  errno = reason;
  return -1;
}

int connect_error(int descriptor) {
  int error = 0;
  socklen_t length = sizeof error;
  return getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &length) == 0 ? error : errno;
}

}  // namespace podium::client
