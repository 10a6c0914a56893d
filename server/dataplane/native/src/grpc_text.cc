#include "grpc_text.h"

#include <array>

namespace podium {

namespace {

constexpr char hex_digits[] = "0123456789ABCDEF";
constexpr char base64_digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr uint8_t no_digit = 255;

constexpr std::array<uint8_t, 256> digit_values() {
  std::array<uint8_t, 256> values{};
  for (uint8_t& value : values) value = no_digit;
  for (uint8_t digit = 0; digit < 64; ++digit) values[static_cast<uint8_t>(base64_digits[digit])] = digit;
  return values;
}

constexpr std::array<uint8_t, 256> base64_values = digit_values();

// Like the C core it takes any padding or none, and refuses bits that belong to no byte: one text for each value.
bool base64_decode(std::string_view text, std::string* bytes) {
  while (!text.empty() && text.back() == '=') text.remove_suffix(1);
  if (text.size() % 4 == 1) return false;
  bytes->clear();
  bytes->reserve(text.size() / 4 * 3 + 2);
  uint32_t bits = 0;
  int count = 0;
  for (char digit : text) {
    uint8_t value = base64_values[static_cast<uint8_t>(digit)];
    if (value == no_digit) return false;
    bits = (bits << 6 | value) & 0xFFFF;
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes->push_back(static_cast<char>(bits >> count & 0xFF));
  }
  return !(bits & ((1u << count) - 1));
}

std::string_view without_spaces(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// Of `count` units, rounded up; -1 for a letter that is no unit. At most 3.6e15.
int64_t milliseconds(int64_t count, char unit) {
  switch (unit) {
    case 'n':
      return (count + ns_per_ms - 1) / ns_per_ms;
    case 'u':
      return (count + 999) / 1000;
    case 'm':
      return count;
    case 'S':
      return count * 1000;
    case 'M':
      return count * 60'000;
    case 'H':
      return count * 3'600'000;
    default:
      return -1;
  }
}

}  // namespace

std::string percent_encode(std::string_view text) {
  std::string encoded;
  encoded.reserve(text.size());
  for (char each : text) {
    if (each >= ' ' && each <= '~' && each != '%') {
      encoded.push_back(each);
    } else {
      uint8_t byte = static_cast<uint8_t>(each);
      encoded.push_back('%');
      encoded.push_back(hex_digits[byte >> 4]);
      encoded.push_back(hex_digits[byte & 15]);
    }
  }
  return encoded;
}

std::string base64_encode(std::string_view bytes) {
  std::string encoded;
  encoded.reserve((bytes.size() + 2) / 3 * 4);
  uint32_t bits = 0;
  int count = 0;
  for (char each : bytes) {
    bits = (bits << 8 | static_cast<uint8_t>(each)) & 0xFFFF;
    count += 8;
    while (count >= 6) {
      count -= 6;
      encoded.push_back(base64_digits[bits >> count & 63]);
    }
  }
  if (count) encoded.push_back(base64_digits[bits << (6 - count) & 63]);
  return encoded;
}

bool decode_binary(std::string_view name, std::string_view value, Metadata* metadata) {
  size_t before = metadata->size();
  for (;;) {
    size_t comma = value.find(',');
    std::string bytes;
    if (!base64_decode(without_spaces(value.substr(0, comma)), &bytes)) {
      metadata->resize(before);
      return false;
    }
    metadata->emplace_back(name, std::move(bytes));
    if (comma == std::string_view::npos) return true;
    value.remove_prefix(comma + 1);
  }
}

bool parse_timeout(std::string_view text, int64_t* timeout_ns) {
  constexpr int64_t most = 100'000'000;
  size_t at = 0;
  auto skip_spaces = [&] {
    while (at < text.size() && text[at] == ' ') ++at;
  };
  skip_spaces();
  size_t first = at;
  int64_t count = 0;
  for (; at < text.size() && text[at] >= '0' && text[at] <= '9'; ++at) {
    int64_t digit = text[at] - '0';
    // the protocol allows eight digits; whatever follows a number that is far too large is not looked at any more
    if (count >= most && (count != most || digit)) {
      *timeout_ns = no_deadline_ns;
      return true;
    }
    count = count * 10 + digit;
  }
  if (at == first) return false;
  skip_spaces();
  if (at == text.size()) return false;
  int64_t timeout_ms = milliseconds(count, text[at++]);
  skip_spaces();
  if (timeout_ms < 0 || at != text.size()) return false;
  *timeout_ns = timeout_ms < no_deadline_ns / ns_per_ms ? timeout_ms * ns_per_ms : no_deadline_ns;
  return true;
}

int64_t deadline_after(int64_t arrival_ns, int64_t timeout_ns) {
  return timeout_ns < no_deadline_ns - arrival_ns ? arrival_ns + timeout_ns : no_deadline_ns;
}

}  // namespace podium
