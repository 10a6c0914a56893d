// TLS of connections: handshakes, bytes, and who the caller's certificate says it is. OpenSSL does the work.
//
// A caller must choose HTTP/2 by ALPN, as gRPC asks of it. Nothing is resumed: a certificate is looked at in every handshake.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "http2.h"

typedef struct ssl_ctx_st SSL_CTX;
typedef struct ssl_st SSL;

namespace podium {

// One certificate, and what callers' certificates are checked with. Any thread; sessions keep the one they began with.
class TlsContext : public Counted {
 public:
  // Throws std::runtime_error with OpenSSL's reason. Never asks anybody for a password.
  static Ref<TlsContext> make(const TlsFiles& files);
  ~TlsContext() override;
  SSL_CTX* get() const { return context_; }

 private:
  explicit TlsContext(SSL_CTX* context) : context_(context) {}
  SSL_CTX* context_;
};

// One connection's. Ownership: its loop's thread. `fd` is a non-blocking socket, which stays its owner's to close.
class TlsSession {
 public:
  // want_read, want_write: call the same again when the socket is ready for that, whichever was called: a read may have to
  // write.
  // closed: the peer has ended, there is nothing more to read. failed: nothing works any more, `failure` says why.
  enum class Io { ok, want_read, want_write, closed, failed };

  // Throws std::bad_alloc.
  TlsSession(Ref<TlsContext> context, int fd);
  ~TlsSession();
  TlsSession(const TlsSession&) = delete;
  TlsSession& operator=(const TlsSession&) = delete;

  // ok: done, and HTTP/2 was chosen: a caller that chose nothing has failed. closed: it left before.
  Io handshake();
  // ok: `*got` > 0 bytes. Read until want_read: what OpenSSL holds already does not make the socket ready again.
  Io read(uint8_t* target, size_t capacity, size_t* got);
  // ok: `*put` > 0 bytes, maybe less than `size`; each call is a record and a system call, of at most 16 KiB. After want_* the
  // same bytes must be given again, at any address, and maybe more after them.
  Io write(const uint8_t* bytes, size_t size, size_t* put);
  // Tells the peer that nothing more comes, if that needs no waiting. Before closing the socket; after failed it does nothing.
  void close();

  bool chose_h2() const;
  // Of the caller's verified certificate, by gRPC's names (grpc_security_constants.h), a name as often as it has values:
  // x509_subject, x509_common_name, x509_pem_cert, x509_subject_alternative_name, peer_uri, peer_dns, peer_email, peer_ip.
  // Empty without one.
  Metadata properties() const;
  // Why it failed or was closed, in OpenSSL's words or errno's.
  std::string failure() const { return failure_; }

 private:
  Io ended(int result);

  Ref<TlsContext> context_;
  SSL* session_;
  bool failed_ = false;
  std::string failure_;
};

}  // namespace podium
