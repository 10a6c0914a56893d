// A caller and a session of the server, joined by a pair of sockets, on one thread: each step is the test's.
#pragma once

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "authority.h"
#include "check.h"
#include "tls.h"

namespace podium::units {

using Io = TlsSession::Io;

struct Sockets {
  int server, caller;
  Sockets() {
    int both[2];
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, both));
    server = both[0];
    caller = both[1];
  }
  ~Sockets() {
    ::close(server);
    if (caller >= 0) ::close(caller);
  }
  void hang_up() {
    ::close(caller);
    caller = -1;
  }
};

struct Wishes {
  std::string alpn = std::string("\x02h2", 3);  // as on the wire: lengths and names
  int least = TLS1_2_VERSION, most = TLS1_3_VERSION;
  Issued own;
  std::string ciphers;
};

class Caller {
 public:
  Caller(const Wishes& wishes, int fd) : context_(SSL_CTX_new(TLS_client_method())), ssl_(nullptr) {
    // so that versions that nobody should speak can be tried
    SSL_CTX_set_security_level(context_, 0);
    SSL_CTX_set_min_proto_version(context_, wishes.least);
    SSL_CTX_set_max_proto_version(context_, wishes.most);
    SSL_CTX_set_mode(context_, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    if (!wishes.ciphers.empty()) CHECK(SSL_CTX_set_cipher_list(context_, wishes.ciphers.c_str()));
    if (!wishes.own.chain.empty()) show(wishes.own);
    ssl_ = SSL_new(context_);
    if (!wishes.alpn.empty()) {
      const auto* names = reinterpret_cast<const unsigned char*>(wishes.alpn.data());
      CHECK(!SSL_set_alpn_protos(ssl_, names, static_cast<unsigned>(wishes.alpn.size())));
    }
    SSL_set_fd(ssl_, fd);
    SSL_set_connect_state(ssl_);
  }
  ~Caller() {
    SSL_free(ssl_);
    SSL_CTX_free(context_);
  }
  SSL* get() { return ssl_; }
  // 1 done, 0 not yet, -1 refused.
  int shake() {
    ERR_clear_error();
    int result = SSL_do_handshake(ssl_);
    if (result == 1) return 1;
    int kind = SSL_get_error(ssl_, result);
    return kind == SSL_ERROR_WANT_READ || kind == SSL_ERROR_WANT_WRITE ? 0 : -1;
  }

 private:
  void show(const Issued& own) {
    BIO* chain = BIO_new_mem_buf(own.chain.data(), static_cast<int>(own.chain.size()));
    BIO* secret = BIO_new_mem_buf(own.key.data(), static_cast<int>(own.key.size()));
    X509* certificate = PEM_read_bio_X509(chain, nullptr, nullptr, nullptr);
    EVP_PKEY* key = PEM_read_bio_PrivateKey(secret, nullptr, nullptr, nullptr);
    CHECK(SSL_CTX_use_certificate(context_, certificate) && SSL_CTX_use_PrivateKey(context_, key));
    X509_free(certificate);
    EVP_PKEY_free(key);
    BIO_free(chain);
    BIO_free(secret);
  }

  SSL_CTX* context_;
  SSL* ssl_;
};

// What the server says to the whole handshake.
inline Io shake(TlsSession& session, Caller& caller) {
  for (int round = 0; round < 100; ++round) {
    int called = caller.shake();
    Io answered = session.handshake();
    if (answered == Io::failed || answered == Io::closed) return answered;
    if (answered == Io::ok && called == 1) return answered;
  }
  CHECK(false && "a handshake without end");
  return Io::failed;
}

}  // namespace podium::units
