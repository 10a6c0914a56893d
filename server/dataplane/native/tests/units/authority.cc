#include "authority.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include "check.h"

namespace podium::units {

namespace {

class Text {
 public:
  BIO* bio() { return bio_; }
  std::string take() {
    char* bytes = nullptr;
    long size = BIO_get_mem_data(bio_, &bytes);
    std::string taken(bytes, static_cast<size_t>(size));
    BIO_free(bio_);
    return taken;
  }

 private:
  BIO* bio_ = BIO_new(BIO_s_mem());
};

std::string pem_of(X509* certificate) {
  Text text;
  CHECK(PEM_write_bio_X509(text.bio(), certificate));
  return text.take();
}

std::string pem_of(EVP_PKEY* key) {
  Text text;
  CHECK(PEM_write_bio_PrivateKey(text.bio(), key, nullptr, nullptr, 0, nullptr, nullptr));
  return text.take();
}

void set_name(X509* certificate, const std::string& common_name) {
  if (common_name.empty()) return;
  CHECK(X509_NAME_add_entry_by_NID(X509_get_subject_name(certificate), NID_commonName, MBSTRING_UTF8,
                                   reinterpret_cast<const unsigned char*>(common_name.data()),
                                   static_cast<int>(common_name.size()), -1, 0));
}

X509* blank(EVP_PKEY* key, const std::string& common_name, int days) {
  static long serial = 1;
  X509* made = X509_new();
  CHECK(made && X509_set_version(made, X509_VERSION_3) && X509_set_pubkey(made, key));
  ASN1_INTEGER_set(X509_get_serialNumber(made), serial++);
  X509_gmtime_adj(X509_getm_notBefore(made), -86'400L * 9);
  X509_gmtime_adj(X509_getm_notAfter(made), 86'400L * days);
  set_name(made, common_name);
  return made;
}

void add_alternatives(X509* certificate, const Names& names) {
  if (names.alternatives.empty()) return;
  GENERAL_NAMES* all = GENERAL_NAMES_new();
  for (const auto& [type, bytes] : names.alternatives) {
    GENERAL_NAME* name = GENERAL_NAME_new();
    if (type == GEN_RID) {
      GENERAL_NAME_set0_value(name, type, OBJ_txt2obj(bytes.c_str(), 1));
    } else {
      ASN1_STRING* value = ASN1_STRING_type_new(type == GEN_IPADD ? V_ASN1_OCTET_STRING : V_ASN1_IA5STRING);
      ASN1_STRING_set(value, bytes.data(), static_cast<int>(bytes.size()));
      GENERAL_NAME_set0_value(name, type, value);
    }
    sk_GENERAL_NAME_push(all, name);
  }
  CHECK(X509_add1_ext_i2d(certificate, NID_subject_alt_name, all, 0, 0) == 1);
  GENERAL_NAMES_free(all);
}

}  // namespace

Authority::Authority(const std::string& name) : key_(EVP_EC_gen("P-256")), certificate_(blank(key_, name, 365)) {
  X509_set_issuer_name(certificate_, X509_get_subject_name(certificate_));
  X509_EXTENSION* is_issuer = X509V3_EXT_conf_nid(nullptr, nullptr, NID_basic_constraints, "critical,CA:TRUE");
  X509_add_ext(certificate_, is_issuer, -1);
  X509_EXTENSION_free(is_issuer);
  CHECK(X509_sign(certificate_, key_, EVP_sha256()));
  root_ = pem_of(certificate_);
}

Authority::~Authority() {
  X509_free(certificate_);
  EVP_PKEY_free(key_);
}

Issued Authority::issue(const Names& names, int days) const {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* made = blank(key, names.common_name, days);
  X509_set_issuer_name(made, X509_get_subject_name(certificate_));
  add_alternatives(made, names);
  CHECK(X509_sign(made, key_, EVP_sha256()));
  Issued issued{pem_of(made), pem_of(key)};
  X509_free(made);
  EVP_PKEY_free(key);
  return issued;
}

std::string encrypted(const std::string& key) {
  BIO* bio = BIO_new_mem_buf(key.data(), static_cast<int>(key.size()));
  EVP_PKEY* read = PEM_read_bio_PrivateKey(bio, nullptr, nullptr, nullptr);
  BIO_free(bio);
  Text text;
  unsigned char password[] = "secret";
  char* secret = reinterpret_cast<char*>(password);
  CHECK(PEM_write_bio_PKCS8PrivateKey(text.bio(), read, EVP_aes_256_cbc(), secret, 6, nullptr, nullptr));
  EVP_PKEY_free(read);
  return text.take();
}

}  // namespace podium::units
