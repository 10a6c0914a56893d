#include "certificate.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <memory>
#include <new>
#include <string>

namespace podium {

namespace {

struct Freed {
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(GENERAL_NAMES* names) const { GENERAL_NAMES_free(names); }
};

class Printed {
 public:
  Printed() : bio_(BIO_new(BIO_s_mem())) {
    if (!bio_) throw std::bad_alloc();
  }
  BIO* bio() { return bio_.get(); }
  std::string text() {
    char* bytes = nullptr;
    long size = BIO_get_mem_data(bio_.get(), &bytes);
    return size > 0 ? std::string(bytes, static_cast<size_t>(size)) : std::string();
  }

 private:
  std::unique_ptr<BIO, Freed> bio_;
};

bool utf8(const ASN1_STRING* text, std::string* found) {
  unsigned char* bytes = nullptr;
  int size = ASN1_STRING_to_UTF8(&bytes, text);
  if (size < 0) return false;
  found->assign(reinterpret_cast<char*>(bytes), static_cast<size_t>(size));
  OPENSSL_free(bytes);
  return true;
}

bool address(const ASN1_OCTET_STRING* bytes, std::string* found) {
  char text[INET6_ADDRSTRLEN];
  int size = ASN1_STRING_length(bytes);
  if (size != 4 && size != 16) return false;
  if (!inet_ntop(size == 4 ? AF_INET : AF_INET6, ASN1_STRING_get0_data(bytes), text, sizeof text)) return false;
  *found = text;
  return true;
}

std::string common_name(const X509_NAME* subject) {
  std::string found;
  int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
  if (at >= 0) utf8(X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)), &found);
  return found;
}

void add_alternative(const GENERAL_NAME* name, Metadata* found) {
  std::string text;
  const char* property = nullptr;
  bool readable = true;
  switch (name->type) {
    case GEN_DNS:
      property = "peer_dns";
      readable = utf8(name->d.dNSName, &text);
      break;
    case GEN_EMAIL:
      property = "peer_email";
      readable = utf8(name->d.rfc822Name, &text);
      break;
    case GEN_URI:
      property = "peer_uri";
      readable = utf8(name->d.uniformResourceIdentifier, &text);
      break;
    case GEN_IPADD:
      property = "peer_ip";
      readable = address(name->d.iPAddress, &text);
      break;
    default:
      text = "other types of SAN";
  }
  if (!readable) return;
  found->emplace_back("x509_subject_alternative_name", text);
  if (property) found->emplace_back(property, text);
}

}  // namespace

Metadata properties_of(X509* certificate) {
  Metadata found;
  const X509_NAME* subject = X509_get_subject_name(certificate);
  Printed name, pem;
  X509_NAME_print_ex(name.bio(), subject, 0, XN_FLAG_RFC2253);
  found.emplace_back("x509_subject", name.text());
  found.emplace_back("x509_common_name", common_name(subject));
  PEM_write_bio_X509(pem.bio(), certificate);
  found.emplace_back("x509_pem_cert", pem.text());
  std::unique_ptr<GENERAL_NAMES, Freed> names(
      static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
  int count = names ? sk_GENERAL_NAME_num(names.get()) : 0;
  for (int at = 0; at < count; ++at) add_alternative(sk_GENERAL_NAME_value(names.get(), at), &found);
  ERR_clear_error();
  return found;
}

}  // namespace podium
