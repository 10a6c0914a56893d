#include "built.h"

#include <nghttp2/nghttp2.h>
#include <openssl/crypto.h>
#include <zlib.h>

namespace podium {

std::string built_with() {
#if defined(__clang__)
  std::string made = "Clang " __clang_version__;
#else
  std::string made = "GCC " __VERSION__;
#endif
  while (!made.empty() && made.back() == ' ') made.pop_back();
  made += std::string(", nghttp2 ") + nghttp2_version(0)->version_str;
  made += std::string(", OpenSSL ") + OpenSSL_version(OPENSSL_VERSION_STRING);
  made += std::string(", zlib ") + zlibVersion();
  if (*PODIUM_SANITIZERS) made += ", sanitizers " PODIUM_SANITIZERS;
  return made;
}

}  // namespace podium
