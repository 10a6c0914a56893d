#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <cstring>
#include <new>
#include <system_error>

#include "certificate.h"
#include "tls.h"

namespace podium {

namespace {

// OpenSSL's own socket writes with write(), and a peer that is gone would end the whole process (SIGPIPE).
int descriptor(BIO* bio) { return static_cast<int>(reinterpret_cast<intptr_t>(BIO_get_data(bio))); }

bool try_later() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

int write_socket(BIO* bio, const char* bytes, int size) {
  BIO_clear_retry_flags(bio);
  ssize_t put = send(descriptor(bio), bytes, static_cast<size_t>(size), MSG_NOSIGNAL);
  if (put < 0 && try_later()) BIO_set_retry_write(bio);
  return static_cast<int>(put);
}

int read_socket(BIO* bio, char* target, int capacity) {
  BIO_clear_retry_flags(bio);
  ssize_t got = recv(descriptor(bio), target, static_cast<size_t>(capacity), 0);
  if (got < 0 && try_later()) BIO_set_retry_read(bio);
  if (got == 0) BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
  return static_cast<int>(got);
}

long control_socket(BIO* bio, int command, long, void*) {
  if (command == BIO_CTRL_EOF) return BIO_test_flags(bio, BIO_FLAGS_IN_EOF) != 0;
  return command == BIO_CTRL_FLUSH;
}

BIO_METHOD* make_socket_method() {
  BIO_METHOD* made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "socket");
  if (!made) throw std::bad_alloc();
  BIO_meth_set_write(made, write_socket);
  BIO_meth_set_read(made, read_socket);
  BIO_meth_set_ctrl(made, control_socket);
  return made;
}

BIO* make_socket(int fd) {
  static BIO_METHOD* const method = make_socket_method();
  BIO* made = BIO_new(method);
  if (!made) throw std::bad_alloc();
  BIO_set_data(made, reinterpret_cast<void*>(static_cast<intptr_t>(fd)));
  BIO_set_init(made, 1);
  return made;
}

// Of the first error, from which others follow; but a certificate's is clearer than what its mathematics failed with.
std::string reason_of(unsigned long error, long verified) {
  if (verified != X509_V_OK) return std::string("certificate verify failed: ") + X509_verify_cert_error_string(verified);
  const char* reason = ERR_reason_error_string(error);
  return reason ? reason : "unknown";
}

}  // namespace

TlsSession::TlsSession(Ref<TlsContext> context, int fd) : context_(std::move(context)), session_(SSL_new(context_->get())) {
  if (!session_) {
    ERR_clear_error();
    throw std::bad_alloc();
  }
  try {
    BIO* socket = make_socket(fd);
    SSL_set_bio(session_, socket, socket);
  } catch (...) {
    SSL_free(session_);
    throw;
  }
  SSL_set_accept_state(session_);
}

TlsSession::~TlsSession() { SSL_free(session_); }

TlsSession::Io TlsSession::handshake() {
  if (failed_) return Io::failed;
  // the queue of errors is the thread's: what another session left there must not be taken for this one's
  ERR_clear_error();
  errno = 0;
  int result = SSL_do_handshake(session_);
  if (result != 1) return ended(result);
  if (chose_h2()) return Io::ok;
  failed_ = true;
  failure_ = "the caller did not choose h2 by ALPN";
  return Io::failed;
}

TlsSession::Io TlsSession::read(uint8_t* target, size_t capacity, size_t* got) {
  *got = 0;
  if (failed_) return Io::failed;
  if (!capacity) return Io::ok;
  ERR_clear_error();
  errno = 0;
  int result = SSL_read_ex(session_, target, capacity, got);
  return result == 1 ? Io::ok : ended(result);
}

TlsSession::Io TlsSession::write(const uint8_t* bytes, size_t size, size_t* put) {
  *put = 0;
  if (failed_) return Io::failed;
  if (!size) return Io::ok;
  ERR_clear_error();
  errno = 0;
  int result = SSL_write_ex(session_, bytes, size, put);
  return result == 1 ? Io::ok : ended(result);
}

TlsSession::Io TlsSession::ended(int result) {
  int failed_with = errno;
  int kind = SSL_get_error(session_, result);
  if (kind == SSL_ERROR_WANT_READ) return Io::want_read;
  if (kind == SSL_ERROR_WANT_WRITE) return Io::want_write;
  failure_ = "the peer ended the connection";
  if (kind == SSL_ERROR_ZERO_RETURN) return Io::closed;
  failed_ = true;
  unsigned long error = ERR_peek_error();
  if (error) {
    failure_ = reason_of(error, SSL_get_verify_result(session_));
  } else if (failed_with) {
    failure_ = std::generic_category().message(failed_with);
  }
  ERR_clear_error();
  // whoever hangs up has done nothing wrong
  bool left = !error && (!failed_with || failed_with == ECONNRESET || failed_with == EPIPE);
  return left ? Io::closed : Io::failed;
}

void TlsSession::close() {
  if (failed_ || !SSL_is_init_finished(session_)) return;
  ERR_clear_error();
  SSL_shutdown(session_);
  ERR_clear_error();
  failed_ = true;
  if (failure_.empty()) failure_ = "closed here";
}

bool TlsSession::chose_h2() const {
  const unsigned char* chosen = nullptr;
  unsigned int size = 0;
  SSL_get0_alpn_selected(session_, &chosen, &size);
  return size == 2 && !std::memcmp(chosen, "h2", 2);
}

Metadata TlsSession::properties() const {
  X509* certificate = SSL_get0_peer_certificate(session_);
  if (!certificate || SSL_get_verify_result(session_) != X509_V_OK) return {};
  return properties_of(certificate);
}

}  // namespace podium
