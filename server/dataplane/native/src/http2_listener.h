// Listening sockets, which all loops share.
#pragma once

#include <memory>
#include <string>

#include "http2_loop.h"
#include "http2_timers.h"

namespace podium {

// Ownership: shared by the loops; closed when the last of them lets it go.
class HttpListener {
 public:
  HttpListener(int fd, bool tls) : fd_(fd), tls_(tls) {}
  ~HttpListener();
  HttpListener(const HttpListener&) = delete;
  HttpListener& operator=(const HttpListener&) = delete;
  int fd() const { return fd_; }
  bool tls() const { return tls_; }

 private:
  int fd_;
  bool tls_;
};

// One loop's share in a listener.
class Accepting final : public Watched {
 public:
  Accepting(HttpLoop& loop, std::shared_ptr<HttpListener> listener);
  ~Accepting() override;
  void ready(uint32_t events) override;
  void lost() noexcept override {}

 private:
  void resume(int64_t now);
  void pause();
  bool accept_one();

  HttpLoop& loop_;
  std::shared_ptr<HttpListener> listener_;
  bool watching_ = false;
  MemberTimer<Accepting> pause_{*this, &Accepting::resume};
};

// The other end of a connected socket, in gRPC's words.
std::string peer_address(int fd);

}  // namespace podium
