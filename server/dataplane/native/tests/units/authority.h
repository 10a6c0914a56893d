// Certificates for tests, made for the purpose and as real as any.
#pragma once

#include <openssl/evp.h>
#include <openssl/x509.h>

#include <string>
#include <vector>

namespace podium::units {

struct Issued {
  std::string chain, key;
};

// What a certificate says. An alternative is OpenSSL's type of it (GEN_DNS, ...) and its bytes.
struct Names {
  std::string common_name;
  std::vector<std::pair<int, std::string>> alternatives;
};

class Authority {
 public:
  explicit Authority(const std::string& name = "the authority");
  ~Authority();
  Authority(const Authority&) = delete;
  Authority& operator=(const Authority&) = delete;
  const std::string& root() const { return root_; }
  // Good from a day ago until `days` from now.
  Issued issue(const Names& names, int days = 1) const;

 private:
  EVP_PKEY* key_;
  X509* certificate_;
  std::string root_;
};

// The same key, behind a password.
std::string encrypted(const std::string& key);

}  // namespace podium::units
