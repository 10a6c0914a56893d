#include <limits.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>

#include <memory>
#include <new>
#include <stdexcept>

#include "tls.h"

namespace podium {

namespace {

// gRPC's own: forward secret, authenticated, none that HTTP/2 forbids (RFC 9113, appendix A).
// Source: grpc/grpc, src/core/lib/security/security_connector/ssl_utils.cc.
constexpr char tls13_ciphers[] = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";
constexpr char tls12_ciphers[] =
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384";
constexpr unsigned char protocols[] = {2, 'h', '2'};

struct Freed {
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
template <typename T>
using Owned = std::unique_ptr<T, Freed>;

[[noreturn]] void fail(const std::string& what) {
  // the first that went wrong, the others follow from it
  unsigned long error = ERR_peek_error();
  const char* reason = error ? ERR_reason_error_string(error) : nullptr;
  ERR_clear_error();
  throw std::runtime_error(reason ? what + ": " + reason : what);
}

void must(bool done, const char* what) {
  if (!done) fail(what);
}

Owned<BIO> reader(const std::string& text) {
  if (text.size() > INT_MAX) throw std::runtime_error("a PEM text of more than 2 GiB");
  Owned<BIO> made(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
  if (!made) throw std::bad_alloc();
  return made;
}

// The next certificate, none at the end. Throws where there is something else.
Owned<X509> next_certificate(BIO* bio, const char* what) {
  Owned<X509> found(PEM_read_bio_X509(bio, nullptr, nullptr, const_cast<char*>("")));
  if (!found) {
    unsigned long error = ERR_peek_last_error();
    if (ERR_GET_LIB(error) != ERR_LIB_PEM || ERR_GET_REASON(error) != PEM_R_NO_START_LINE) fail(what);
    ERR_clear_error();
  }
  return found;
}

void use_chain(SSL_CTX* context, const std::string& pem) {
  constexpr char what[] = "the certificate";
  Owned<BIO> bio = reader(pem);
  Owned<X509> own = next_certificate(bio.get(), what);
  if (!own) throw std::runtime_error("the certificate: there is none");
  must(SSL_CTX_use_certificate(context, own.get()), what);
  while (Owned<X509> issuer = next_certificate(bio.get(), what)) must(SSL_CTX_add1_chain_cert(context, issuer.get()), what);
}

// Without it OpenSSL would ask whoever sits at the terminal.
int no_password(char*, int, int, void* asked) {
  *static_cast<bool*>(asked) = true;
  return -1;
}

void use_key(SSL_CTX* context, const std::string& pem) {
  constexpr char what[] = "the private key";
  Owned<BIO> bio = reader(pem);
  bool asked = false;
  Owned<EVP_PKEY> key(PEM_read_bio_PrivateKey(bio.get(), nullptr, no_password, &asked));
  if (asked) {
    ERR_clear_error();
    throw std::runtime_error("the private key is encrypted");
  }
  must(key && SSL_CTX_use_PrivateKey(context, key.get()) && SSL_CTX_check_private_key(context), what);
}

void ask_callers(SSL_CTX* context, const std::string& pem) {
  constexpr char what[] = "the certificates that callers are checked with";
  Owned<BIO> bio = reader(pem);
  X509_STORE* store = SSL_CTX_get_cert_store(context);
  // as gRPC does: an issuer that is named here is trusted, whoever signed it
  X509_STORE_set_flags(store, X509_V_FLAG_PARTIAL_CHAIN | X509_V_FLAG_TRUSTED_FIRST);
  int count = 0;
  for (; Owned<X509> root = next_certificate(bio.get(), what); ++count) {
    must(X509_STORE_add_cert(store, root.get()) && SSL_CTX_add_client_CA(context, root.get()), what);
  }
  if (!count) throw std::runtime_error(std::string(what) + ": there are none");
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
}

// A caller that offers protocols must offer HTTP/2; one that offers none is sent away after the handshake.
int choose_protocol(SSL*, const unsigned char** chosen, unsigned char* size, const unsigned char* offered, unsigned int length,
                    void*) {
  unsigned char* found = nullptr;
  if (SSL_select_next_proto(&found, size, protocols, sizeof protocols, offered, length) != OPENSSL_NPN_NEGOTIATED) {
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  }
  *chosen = found;
  return SSL_TLSEXT_ERR_OK;
}

void set_rules(SSL_CTX* context) {
  must(SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) && SSL_CTX_set_ciphersuites(context, tls13_ciphers) &&
           SSL_CTX_set_cipher_list(context, tls12_ciphers),
       "the ciphers");
  // HTTP/2 frames say where they end, so an end without a goodbye cuts nothing off; no session is resumed, because callers keep
  // their connections, and one that comes back must show a certificate that is valid then
  SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE |
                                   SSL_OP_NO_TICKET | SSL_OP_IGNORE_UNEXPECTED_EOF);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(context, 0);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_alpn_select_cb(context, choose_protocol, nullptr);
}

}  // namespace

Ref<TlsContext> TlsContext::make(const TlsFiles& files) {
  ERR_clear_error();
  SSL_CTX* context = SSL_CTX_new(TLS_server_method());
  if (!context) fail("TLS");
  Ref<TlsContext> made = Ref<TlsContext>::take(new TlsContext(context));
  set_rules(context);
  use_chain(context, files.chain);
  use_key(context, files.key);
  if (!files.roots.empty()) ask_callers(context, files.roots);
  return made;
}

TlsContext::~TlsContext() { SSL_CTX_free(context_); }

}  // namespace podium
