#include <openssl/x509v3.h>

#include "tls_client.h"

using namespace podium;
using namespace podium::units;

namespace {

const Authority& authority() {
  static const Authority made;
  return made;
}

Ref<TlsContext> open_context() {
  static const Issued own = authority().issue({"server", {}});
  return TlsContext::make(TlsFiles{own.chain, own.key, ""});
}

Ref<TlsContext> mutual_context() {
  static const Issued own = authority().issue({"server", {}});
  return TlsContext::make(TlsFiles{own.chain, own.key, authority().root()});
}

struct Outcome {
  Io io;
  std::string failure;
  Metadata properties;
};

Outcome outcome_of(const Ref<TlsContext>& context, const Wishes& wishes) {
  Sockets sockets;
  TlsSession session(context, sockets.server);
  Caller caller(wishes, sockets.caller);
  Io io = shake(session, caller);
  if (io != Io::ok) CHECK(session.properties().empty());
  return Outcome{io, session.failure(), session.properties()};
}

std::string refusal(const Ref<TlsContext>& context, const Wishes& wishes) {
  Outcome found = outcome_of(context, wishes);
  CHECK(found.io == Io::failed);
  return found.failure;
}

std::string reason_to_refuse(const TlsFiles& files) {
  try {
    TlsContext::make(files);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "taken";
}

std::vector<std::string> values(const Metadata& properties, const std::string& name) {
  std::vector<std::string> found;
  for (const auto& [each, value] : properties) {
    if (each == name) found.push_back(value);
  }
  return found;
}

// All that a caller sends in its first flight.
std::string hello(const Wishes& wishes) {
  Sockets sockets;
  Caller caller(wishes, sockets.caller);
  CHECK_EQUAL(caller.shake(), 0);
  char bytes[4096];
  ssize_t size = recv(sockets.server, bytes, sizeof bytes, 0);
  CHECK(size > 0);
  return std::string(bytes, static_cast<size_t>(size));
}

}  // namespace

TEST(callers_that_speak_http2_get_through) {
  for (int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    Wishes wishes;
    wishes.least = wishes.most = version;
    CHECK(outcome_of(open_context(), wishes).io == Io::ok);
    wishes.alpn = std::string("\x08http/1.1\x02h2", 12);
    CHECK(outcome_of(open_context(), wishes).io == Io::ok);
  }
}

TEST(callers_that_do_not_speak_http2_are_refused) {
  for (int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    Wishes none, other;
    none.least = none.most = other.least = other.most = version;
    none.alpn.clear();
    other.alpn = "\x08http/1.1";
    CHECK_EQUAL(refusal(open_context(), none), "the caller did not choose h2 by ALPN");
    CHECK_EQUAL(refusal(open_context(), other), "no application protocol");
  }
}

TEST(old_versions_and_weak_ciphers_are_refused) {
  Wishes old;
  old.least = TLS1_VERSION;
  old.most = TLS1_1_VERSION;
  CHECK_EQUAL(refusal(open_context(), old), "unsupported protocol");
  Wishes weak;
  weak.most = TLS1_2_VERSION;
  for (const char* ciphers : {"ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384", "AES128-GCM-SHA256"}) {
    weak.ciphers = ciphers;
    CHECK_EQUAL(refusal(open_context(), weak), "no shared cipher");
  }
}

TEST(certificates_of_the_authority_are_asked_for) {
  Authority stranger("somebody else"), impostor;
  for (int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    Wishes wishes;
    wishes.least = wishes.most = version;
    CHECK_EQUAL(refusal(mutual_context(), wishes), "peer did not return a certificate");
    wishes.own = stranger.issue({"client", {}});
    CHECK_EQUAL(refusal(mutual_context(), wishes), "certificate verify failed: unable to get local issuer certificate");
    wishes.own = impostor.issue({"client", {}});
    CHECK_EQUAL(refusal(mutual_context(), wishes), "certificate verify failed: certificate signature failure");
    wishes.own = authority().issue({"client", {}}, -1);
    CHECK_EQUAL(refusal(mutual_context(), wishes), "certificate verify failed: certificate has expired");
    wishes.own = authority().issue({"client", {}});
    CHECK(outcome_of(mutual_context(), wishes).io == Io::ok);
  }
}

TEST(certificates_that_nobody_asked_for_say_nothing) {
  Wishes wishes;
  wishes.own = authority().issue({"client", {}});
  Outcome found = outcome_of(open_context(), wishes);
  CHECK(found.io == Io::ok && found.properties.empty());
}

TEST(names_of_a_certificate_are_grpcs) {
  Names names{"bill, ing",
              {{GEN_URI, "spiffe://example/a"},
               {GEN_DNS, "One.example"},
               {GEN_DNS, "two.example"},
               {GEN_EMAIL, "a@example"},
               {GEN_IPADD, std::string("\x7f\0\0\x01", 4)},
               {GEN_IPADD, std::string(15, 0) + "\x01"},
               {GEN_IPADD, "odd"},
               {GEN_RID, "1.2.3"}}};
  Wishes wishes;
  wishes.own = authority().issue(names);
  Metadata found = outcome_of(mutual_context(), wishes).properties;
  using Texts = std::vector<std::string>;
  CHECK(values(found, "x509_common_name") == Texts{"bill, ing"});
  CHECK(values(found, "x509_subject") == Texts{"CN=bill\\, ing"});
  CHECK(values(found, "x509_pem_cert") == Texts{wishes.own.chain});
  CHECK(values(found, "peer_uri") == Texts{"spiffe://example/a"});
  CHECK((values(found, "peer_dns") == Texts{"One.example", "two.example"}));
  CHECK(values(found, "peer_email") == Texts{"a@example"});
  CHECK((values(found, "peer_ip") == Texts{"127.0.0.1", "::1"}));
  CHECK((values(found, "x509_subject_alternative_name") ==
         Texts{"spiffe://example/a", "One.example", "two.example", "a@example", "127.0.0.1", "::1", "other types of SAN"}));
}

TEST(nul_bytes_do_not_end_a_name) {
  std::string evil("good\0.evil", 10);
  Wishes wishes;
  wishes.own = authority().issue({evil, {{GEN_DNS, evil}, {GEN_URI, evil}}});
  Metadata found = outcome_of(mutual_context(), wishes).properties;
  for (const char* name : {"x509_common_name", "peer_dns", "peer_uri"}) {
    CHECK_EQUAL(values(found, name).size(), 1u);
    CHECK(values(found, name)[0] == evil);
  }
}

TEST(a_certificate_without_names_has_none) {
  Wishes wishes;
  wishes.own = authority().issue({"", {}});
  Metadata found = outcome_of(mutual_context(), wishes).properties;
  CHECK((values(found, "x509_common_name") == std::vector<std::string>{""}));
  CHECK(values(found, "x509_subject_alternative_name").empty());
}

TEST(sessions_are_not_resumed) {
  for (int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    Wishes wishes;
    wishes.least = wishes.most = version;
    Ref<TlsContext> context = open_context();
    Sockets first, second;
    TlsSession session(context, first.server), again(context, second.server);
    Caller caller(wishes, first.caller), returning(wishes, second.caller);
    CHECK(shake(session, caller) == Io::ok);
    uint8_t byte = 0;
    size_t count = 0;
    CHECK(session.write(&byte, 1, &count) == Io::ok && SSL_read(caller.get(), &byte, 1) == 1);
    SSL_SESSION* kept = SSL_get1_session(caller.get());
    CHECK(!SSL_SESSION_is_resumable(kept));
    SSL_set_session(returning.get(), kept);
    SSL_SESSION_free(kept);
    CHECK(shake(again, returning) == Io::ok && !SSL_session_reused(returning.get()));
  }
}

TEST(a_handshake_may_drip) {
  std::string bytes = hello(Wishes{});
  Sockets sockets;
  TlsSession session(open_context(), sockets.server);
  for (size_t at = 0; at < bytes.size(); ++at) {
    CHECK(session.handshake() == Io::want_read);
    CHECK_EQUAL(send(sockets.caller, bytes.data() + at, 1, 0), 1);
  }
  CHECK(session.handshake() == Io::want_read);
  char answer[4096];
  CHECK(recv(sockets.caller, answer, sizeof answer, 0) > 100 && answer[0] == 22);
}

TEST(callers_may_vanish_anywhere_in_a_handshake) {
  std::string bytes = hello(Wishes{});
  for (size_t size : {size_t{0}, size_t{1}, size_t{5}, bytes.size() - 1, bytes.size()}) {
    Sockets sockets;
    TlsSession session(open_context(), sockets.server);
    CHECK_EQUAL(send(sockets.caller, bytes.data(), size, 0), static_cast<ssize_t>(size));
    if (size) CHECK(session.handshake() == Io::want_read);
    sockets.hang_up();
    CHECK(session.handshake() == Io::closed);
    CHECK(session.properties().empty() && !session.failure().empty());
  }
}

TEST(garbage_is_refused) {
  Authority other;
  std::string changed = hello(Wishes{});
  changed[5] = 77;
  for (const std::string& bytes :
       {std::string("GET / HTTP/1.1\r\n\r\n"), std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), std::string(300, '\0'),
        std::string(300, '\xff'), std::string("\x16\x03\x01\xff\xff") + std::string(300, 'a'), changed, other.root()}) {
    Sockets sockets;
    TlsSession session(open_context(), sockets.server);
    CHECK_EQUAL(send(sockets.caller, bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
    CHECK(session.handshake() == Io::failed);
    std::string failure = session.failure();
    CHECK(!failure.empty() && failure != "unknown");
    // and stays so
    uint8_t byte = 0;
    size_t count = 1;
    CHECK(session.handshake() == Io::failed && session.read(&byte, 1, &count) == Io::failed && count == 0);
    CHECK(session.write(&byte, 1, &count) == Io::failed && session.failure() == failure);
    session.close();
  }
}

TEST(files_that_do_not_fit_are_told) {
  Issued one = authority().issue({"one", {}}), two = authority().issue({"two", {}});
  std::string cut = one.chain.substr(0, one.chain.size() / 2), broken = one.chain;
  broken.replace(80, 8, "AAAAAAAA");
  CHECK_EQUAL(reason_to_refuse({one.chain, one.key, authority().root()}), "taken");
  CHECK_EQUAL(reason_to_refuse({one.chain + authority().root(), one.key, ""}), "taken");
  CHECK_EQUAL(reason_to_refuse({one.chain, two.key, ""}), "the private key: key values mismatch");
  CHECK_EQUAL(reason_to_refuse({one.chain, encrypted(one.key), ""}), "the private key is encrypted");
  CHECK_EQUAL(reason_to_refuse({"", one.key, ""}), "the certificate: there is none");
  CHECK_EQUAL(reason_to_refuse({one.key, one.key, ""}), "the certificate: there is none");
  CHECK_EQUAL(reason_to_refuse({cut, one.key, ""}), "the certificate: bad end line");
  CHECK_EQUAL(reason_to_refuse({one.chain + cut, one.key, ""}), "the certificate: bad end line");
  CHECK_EQUAL(reason_to_refuse({one.chain, one.key, "none"}), "the certificates that callers are checked with: there are none");
  CHECK(reason_to_refuse({broken, one.key, ""}).find("the certificate: ") == 0);
  CHECK(reason_to_refuse({one.chain, "", ""}).find("the private key: ") == 0);
  CHECK(reason_to_refuse({one.chain, one.key, authority().root() + cut}).find("the certificates that callers are") == 0);
}

TEST(whoever_is_named_is_trusted_whoever_signed_it) {
  Authority unknown("nobody knows it");
  Issued server = authority().issue({"server", {}});
  Wishes wishes, other;
  wishes.own = unknown.issue({"client", {}});
  other.own = unknown.issue({"client", {}});
  Ref<TlsContext> context = TlsContext::make(TlsFiles{server.chain, server.key, authority().root() + wishes.own.chain});
  CHECK(outcome_of(context, wishes).io == Io::ok);
  CHECK(outcome_of(context, other).io == Io::failed);
}
