#include "grpc_text.h"

#include "check.h"

using namespace podium;

namespace {

int64_t timeout_of(std::string_view text) {
  int64_t timeout_ns = -2;
  return parse_timeout(text, &timeout_ns) ? timeout_ns : -1;
}

std::string decoded(std::string_view value) {
  Metadata found;
  if (!decode_binary("x-bin", value, &found)) return found.empty() ? "refused" : "left behind";
  std::string text;
  for (const auto& [name, bytes] : found) text += "[" + bytes + "]";
  return text;
}

}  // namespace

TEST(messages_are_percent_encoded) {
  CHECK_EQUAL(percent_encode(""), "");
  CHECK_EQUAL(percent_encode(" plain ~text, (1/2)!"), " plain ~text, (1/2)!");
  CHECK_EQUAL(percent_encode("100%\n\x7f"), "100%25%0A%7F");
  CHECK_EQUAL(percent_encode("gr\xc3\xbc\xc3\x9f"), "gr%C3%BC%C3%9F");
  CHECK_EQUAL(percent_encode(std::string_view("\0\x1f\xff", 3)), "%00%1F%FF");
}

TEST(bytes_become_base64_without_padding) {
  CHECK_EQUAL(base64_encode(""), "");
  CHECK_EQUAL(base64_encode("f"), "Zg");
  CHECK_EQUAL(base64_encode("fo"), "Zm8");
  CHECK_EQUAL(base64_encode("foo"), "Zm9v");
  CHECK_EQUAL(base64_encode("foob"), "Zm9vYg");
  CHECK_EQUAL(base64_encode(std::string_view("\0\xff\xfb\xf0", 4)), "AP/78A");
}

TEST(whatever_is_encoded_is_decoded) {
  std::string bytes;
  for (int size = 0; size < 300; ++size) {
    Metadata found;
    CHECK(decode_binary("x-bin", base64_encode(bytes), &found));
    CHECK_EQUAL(found.size(), 1u);
    CHECK_EQUAL(found[0].first, "x-bin");
    CHECK(found[0].second == bytes);
    bytes.push_back(static_cast<char>(size * 7));
  }
}

TEST(base64_is_taken_with_and_without_padding) {
  CHECK_EQUAL(decoded(""), "[]");
  CHECK_EQUAL(decoded("Zg"), "[f]");
  CHECK_EQUAL(decoded("Zg=="), "[f]");
  CHECK_EQUAL(decoded("Zm8="), "[fo]");
  CHECK_EQUAL(decoded("===="), "[]");
}

TEST(a_list_is_several_values) {
  CHECK_EQUAL(decoded("Zg,Zm8=, Zm9v\t"), "[f][fo][foo]");
  CHECK_EQUAL(decoded(",Zg,"), "[][f][]");
  Metadata found{{"a", "b"}};
  CHECK(!decode_binary("x-bin", "Zg,*", &found));
  CHECK_EQUAL(found.size(), 1u);
}

TEST(what_is_not_base64_is_refused) {
  // a digit alone, bits that belong to no byte, other alphabets, padding inside, spaces inside, bytes beyond ASCII
  for (const char* text : {"Z", "Zm9vY", "Zh", "Zm9", "Zm9_", "Zm9-", "Zg==Zg", "Z g", "Zm\n9v", "\xff\xff\xff\xff", "Zg;Zg"}) {
    CHECK_EQUAL(decoded(text), "refused");
  }
  CHECK_EQUAL(decoded(std::string_view("Zg\0", 3)), "refused");
}

TEST(names_say_whether_they_are_binary) {
  CHECK(is_binary("trace-bin") && is_binary("-bin"));
  CHECK(!is_binary("bin") && !is_binary("trace-bin2") && !is_binary(""));
}

TEST(timeouts_have_units) {
  CHECK_EQUAL(timeout_of("5m"), 5 * ns_per_ms);
  CHECK_EQUAL(timeout_of("5S"), 5 * ns_per_s);
  CHECK_EQUAL(timeout_of("5M"), 300 * ns_per_s);
  CHECK_EQUAL(timeout_of("5H"), 18'000 * ns_per_s);
  CHECK_EQUAL(timeout_of("0n"), 0);
  CHECK_EQUAL(timeout_of("1n"), ns_per_ms);
  CHECK_EQUAL(timeout_of("1000000n"), ns_per_ms);
  CHECK_EQUAL(timeout_of("1000001n"), 2 * ns_per_ms);
  CHECK_EQUAL(timeout_of("1u"), ns_per_ms);
  CHECK_EQUAL(timeout_of("1001u"), 2 * ns_per_ms);
}

TEST(spaces_stand_around_a_timeout) {
  CHECK_EQUAL(timeout_of("  7  m  "), 7 * ns_per_ms);
  CHECK_EQUAL(timeout_of("7\tm"), -1);
  CHECK_EQUAL(timeout_of("7 7m"), -1);
}

TEST(large_timeouts_are_for_ever) {
  CHECK_EQUAL(timeout_of("99999999S"), 99'999'999 * ns_per_s);
  CHECK_EQUAL(timeout_of("1000000000S"), 1'000'000'000 * ns_per_s);
  CHECK_EQUAL(timeout_of("1000000001S"), no_deadline_ns);
  CHECK_EQUAL(timeout_of("10000000000S"), no_deadline_ns);
  CHECK_EQUAL(timeout_of("99999999999999999999999999"), no_deadline_ns);
  CHECK_EQUAL(timeout_of("1000000000H"), no_deadline_ns);
  CHECK_EQUAL(timeout_of("1000000000M"), no_deadline_ns);
  CHECK_EQUAL(timeout_of("999999999999 nonsense"), no_deadline_ns);
}

TEST(what_is_no_timeout_is_refused) {
  for (const char* text :
       {"", " ", "m", "5", "5 ", "-5m", "+5m", "5s", "5ms", "5mm", "0x5m", "1e3m", "5.0m", "5,m", "\xd9\xa3m"}) {
    CHECK_EQUAL(timeout_of(text), -1);
  }
  CHECK_EQUAL(timeout_of(std::string_view("5m\0", 3)), -1);
}

TEST(deadlines_do_not_overflow) {
  CHECK_EQUAL(deadline_after(100, 5), 105);
  CHECK_EQUAL(deadline_after(100, no_deadline_ns), no_deadline_ns);
  CHECK_EQUAL(deadline_after(no_deadline_ns - 1, no_deadline_ns - 1), no_deadline_ns);
  CHECK_EQUAL(deadline_after(100, 1'000'000'000 * ns_per_s), 100 + 1'000'000'000 * ns_per_s);
}
