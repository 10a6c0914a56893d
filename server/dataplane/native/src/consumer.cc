#include "consumer.h"

#include <algorithm>
#include <cctype>
#include <string_view>

namespace podium {
namespace {

constexpr std::string_view header = "podium-consumer";
constexpr size_t most_letters = 128;

std::string named(std::string_view declared) {
  while (!declared.empty() && declared.front() == ' ') declared.remove_prefix(1);
  while (!declared.empty() && declared.back() == ' ') declared.remove_suffix(1);
  bool printable =
      std::all_of(declared.begin(), declared.end(), [](unsigned char letter) { return letter >= 32 && letter < 127; });
  return declared.size() <= most_letters && printable ? std::string(declared) : "invalid";
}

// The most specific name, as server/transport/subjects.py orders and writes them.
std::string subject(const Metadata& properties) {
  constexpr std::pair<std::string_view, std::string_view> kinds[] = {
      {"peer_uri", "uri:"}, {"x509_common_name", "cn:"}, {"peer_dns", "dns:"}};
  for (const auto& [property, prefix] : kinds) {
    for (const auto& [name, value] : properties) {
      if (name != property || value.empty()) continue;
      std::string made(prefix);
      for (char letter : value) {
        made += property == "peer_dns" ? static_cast<char>(std::tolower(static_cast<unsigned char>(letter))) : letter;
      }
      return made;
    }
  }
  return "";
}

}  // namespace

std::string consumer_of(const Stream& stream, bool subjects) {
  for (auto pair = stream.metadata.rbegin(); pair != stream.metadata.rend(); ++pair) {
    if (pair->first != header) continue;
    std::string found = named(pair->second);
    if (!found.empty() || !subjects) return found;
    break;
  }
  return subjects ? named(subject(stream.auth())) : "";
}

}  // namespace podium
