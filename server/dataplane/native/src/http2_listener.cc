#include "http2_listener.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "http2_server.h"

namespace podium {

namespace {

// accepted by one loop in one round
constexpr int round_connections = 16;
// without a file descriptor or memory to accept with
constexpr int64_t pause_ns = 50 * ns_per_ms;

std::string ipv6_address(const sockaddr_in6& address) {
  char text[INET6_ADDRSTRLEN] = "";
  std::string port = std::to_string(ntohs(address.sin6_port));
  if (IN6_IS_ADDR_V4MAPPED(&address.sin6_addr)) {
    inet_ntop(AF_INET, address.sin6_addr.s6_addr + 12, text, sizeof text);
    return "ipv4:" + std::string(text) + ":" + port;
  }
  inet_ntop(AF_INET6, &address.sin6_addr, text, sizeof text);
  std::string scope = address.sin6_scope_id ? "%25" + std::to_string(address.sin6_scope_id) : std::string();
  return "ipv6:%5B" + std::string(text) + scope + "%5D:" + port;
}

}  // namespace

std::string peer_address(int fd) {
  sockaddr_storage storage{};
  socklen_t size = sizeof storage;
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&storage), &size)) return "unknown:";
  switch (storage.ss_family) {
    case AF_INET: {
      sockaddr_in address;
      std::memcpy(&address, &storage, sizeof address);
      char text[INET_ADDRSTRLEN] = "";
      inet_ntop(AF_INET, &address.sin_addr, text, sizeof text);
      return "ipv4:" + std::string(text) + ":" + std::to_string(ntohs(address.sin_port));
    }
    case AF_INET6: {
      sockaddr_in6 address;
      std::memcpy(&address, &storage, sizeof address);
      return ipv6_address(address);
    }
    case AF_UNIX: {
      sockaddr_un address;
      std::memcpy(&address, &storage, sizeof address);
      size_t path = size > sizeof(sa_family_t) ? size - sizeof(sa_family_t) : 0;
      return "unix:" + std::string(address.sun_path, strnlen(address.sun_path, path));
    }
    default:
      return "unknown:";
  }
}

HttpListener::~HttpListener() { ::close(fd_); }

Accepting::Accepting(HttpLoop& loop, std::shared_ptr<HttpListener> listener) : loop_(loop), listener_(std::move(listener)) {
  resume(0);
}

Accepting::~Accepting() {
  loop_.timers().cancel(pause_);
  if (watching_) loop_.forget(listener_->fd());
}

void Accepting::resume(int64_t) {
  // of several loops that sleep, one is woken
  loop_.watch(listener_->fd(), EPOLLIN | EPOLLEXCLUSIVE, *this, true);
  watching_ = true;
}

void Accepting::pause() {
  loop_.forget(listener_->fd());
  watching_ = false;
  loop_.timers().set(pause_, loop_.now() + pause_ns);
}

void Accepting::ready(uint32_t) {
  for (int count = 0; count < round_connections && watching_ && accept_one(); ++count) {
  }
}

bool Accepting::accept_one() {
  int fd = accept4(listener_->fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd >= 0) {
    loop_.server().place(loop_, fd, listener_->tls());
    return true;
  }
  switch (errno) {
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
      // it stays in the backlog; asking again at once would only burn the processor
      pause();
      return false;
    case EINTR:
    case ECONNABORTED:
    case EPROTO:
      return true;
    default:
      return false;
  }
}

}  // namespace podium
