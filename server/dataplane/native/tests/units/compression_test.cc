#include "compression.h"

#include <zlib.h>

#include <cstring>
#include <random>
#include <string>

#include "check.h"

using namespace podium;

namespace {

// As another implementation would squeeze it.
std::string squeezed(const std::string& bytes, int window_bits) {
  z_stream stream{};
  CHECK(deflateInit2(&stream, 9, Z_DEFLATED, window_bits, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  std::string made(deflateBound(&stream, bytes.size()) + 64, 0);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(made.data());
  stream.avail_out = static_cast<uInt>(made.size());
  int result = deflate(&stream, Z_FINISH);
  made.resize(stream.total_out);
  deflateEnd(&stream);
  CHECK_EQUAL(result, Z_STREAM_END);
  return made;
}

std::string gzipped(const std::string& bytes) { return squeezed(bytes, 15 | 16); }

// Each piece in memory of its own, so that a step beyond one is seen.
Rope in_pieces(const std::string& bytes, size_t size) {
  Rope made;
  for (size_t first = 0; first < bytes.size(); first += size) {
    size_t part = std::min(size, bytes.size() - first);
    Ref<Slab> slab = Slab::make(part);
    std::memcpy(slab->data(), bytes.data() + first, part);
    made.append(slab, slab->data(), part);
  }
  return made;
}

std::string text_of(const Rope& rope) {
  std::string text(rope.size(), 0);
  rope.copy(0, rope.size(), reinterpret_cast<uint8_t*>(text.data()));
  return text;
}

std::string noise(size_t size) {
  std::mt19937 chance(7);
  std::string bytes(size, 0);
  for (char& each : bytes) each = static_cast<char>(chance());
  return bytes;
}

Inflated result_of(const std::string& bytes, int encoding, size_t max_bytes, size_t piece = 1 << 20) {
  Rope out;
  Inflated result = inflate(in_pieces(bytes, piece), encoding, max_bytes, &out);
  CHECK(result == Inflated::ok || out.size() == 0);
  return result;
}

Bytes framed(const std::string& bytes, uint8_t flag = 0) {
  Bytes made(5 + bytes.size());
  made.data[0] = flag;
  for (int byte = 0; byte < 4; ++byte) made.data[1 + byte] = static_cast<uint8_t>(bytes.size() >> (24 - 8 * byte));
  std::memcpy(made.data.get() + 5, bytes.data(), bytes.size());
  return made;
}

std::string payload(const Bytes& message) {
  return std::string(reinterpret_cast<char*>(message.data.get()) + 5, message.size - 5);
}

}  // namespace

TEST(messages_expand_however_they_are_cut) {
  for (const std::string& bytes : {std::string(), std::string("x"), std::string(100'000, 'a'), noise(70'001)}) {
    for (int encoding : {gzip_encoding, deflate_encoding}) {
      std::string small = squeezed(bytes, encoding == gzip_encoding ? 15 | 16 : 15);
      for (size_t piece : {size_t{1}, size_t{3}, size_t{1000}, small.size()}) {
        Rope out;
        CHECK(inflate(in_pieces(small, piece), encoding, bytes.size(), &out) == Inflated::ok);
        CHECK(text_of(out) == bytes);
      }
    }
  }
}

TEST(what_was_there_stays_in_front) {
  Rope out = in_pieces("before ", 3);
  CHECK(inflate(in_pieces(gzipped("after"), 1000), gzip_encoding, 5, &out) == Inflated::ok);
  CHECK_EQUAL(text_of(out), "before after");
}

TEST(nothing_expands_to_nothing) { CHECK(result_of("", gzip_encoding, 0) == Inflated::ok); }

TEST(a_message_may_have_its_limit_and_not_a_byte_more) {
  for (size_t size : {size_t{1}, size_t{4096}, size_t{4097}, size_t{3'000'000}}) {
    std::string small = gzipped(std::string(size, 'z'));
    CHECK(result_of(small, gzip_encoding, size) == Inflated::ok);
    CHECK(result_of(small, gzip_encoding, size - 1) == Inflated::too_large);
    CHECK(result_of(small, gzip_encoding, size - 1, 1) == Inflated::too_large);
    CHECK(result_of(small, gzip_encoding, SIZE_MAX) == Inflated::ok);
  }
}

TEST(a_bomb_stops_at_the_limit) {
  std::string bomb = gzipped(std::string(64 << 20, 0));
  CHECK(bomb.size() < 100'000);
  CHECK(result_of(bomb, gzip_encoding, 1000) == Inflated::too_large);
  CHECK(result_of(bomb, gzip_encoding, 0) == Inflated::too_large);
}

TEST(cut_messages_are_malformed) {
  std::string small = gzipped("cut me anywhere");
  for (size_t size = 1; size < small.size(); ++size) {
    CHECK(result_of(small.substr(0, size), gzip_encoding, 1000, 5) == Inflated::malformed);
  }
}

TEST(changed_messages_are_malformed_or_too_large) {
  std::string small = gzipped(std::string(500, 'q') + noise(50));
  for (size_t at = small.size() - 8; at < small.size(); ++at) {
    std::string changed = small;
    changed[at] = static_cast<char>(changed[at] ^ 1);
    CHECK(result_of(changed, gzip_encoding, 1000) == Inflated::malformed);
  }
}

TEST(bytes_after_the_end_are_malformed) {
  std::string small = gzipped("one");
  for (size_t piece : {size_t{1}, small.size(), size_t{1000}}) {
    CHECK(result_of(small + "x", gzip_encoding, 1000, piece) == Inflated::malformed);
    CHECK(result_of(small + gzipped("two"), gzip_encoding, 1000, piece) == Inflated::malformed);
  }
}

TEST(one_format_is_not_the_other) {
  CHECK(result_of(gzipped("x"), deflate_encoding, 10) == Inflated::malformed);
  CHECK(result_of(squeezed("x", 15), gzip_encoding, 10) == Inflated::malformed);
  CHECK(result_of(squeezed("x", -15), deflate_encoding, 10) == Inflated::malformed);
  CHECK(result_of(noise(1000), gzip_encoding, 10'000) == Inflated::malformed);
}

TEST(a_dictionary_that_nobody_has_is_malformed) {
  // RFC 1950: a header that asks for one (FDICT), and which
  CHECK(result_of(std::string("\x78\xbb\0\0\0\x01\x03\0\0\0\0\x01", 12), deflate_encoding, 10) == Inflated::malformed);
}

TEST(answers_are_squeezed_where_that_helps) {
  for (int encoding : {gzip_encoding, deflate_encoding}) {
    std::string bytes(10'000, 'a');
    Bytes small = deflate_message(framed(bytes), encoding);
    CHECK(small.size < 200 && small.data[0] == 1);
    size_t length = size_t{small.data[1]} << 24 | small.data[2] << 16 | small.data[3] << 8 | small.data[4];
    CHECK_EQUAL(length, small.size - 5);
    Rope out;
    CHECK(inflate(in_pieces(payload(small), 7), encoding, bytes.size(), &out) == Inflated::ok);
    CHECK(text_of(out) == bytes);
  }
}

TEST(answers_stay_as_they_are_where_it_does_not) {
  for (const std::string& bytes : {std::string(), std::string("a"), std::string("ab"), std::string("abcdefgh"), noise(5000)}) {
    Bytes same = deflate_message(framed(bytes), gzip_encoding);
    CHECK(same.data[0] == 0 && payload(same) == bytes);
  }
  Bytes squeezed_already = deflate_message(framed(std::string(1000, 'a'), 1), gzip_encoding);
  CHECK(squeezed_already.data[0] == 1 && payload(squeezed_already) == std::string(1000, 'a'));
  CHECK_EQUAL(deflate_message(Bytes(), gzip_encoding).size, 0u);
}

TEST(any_change_of_a_message_ends_in_an_answer) {
  for (int encoding : {gzip_encoding, deflate_encoding}) {
    std::string small = squeezed(std::string(3000, 'q') + noise(40), encoding == gzip_encoding ? 15 | 16 : 15);
    size_t refused = 0;
    for (size_t at = 0; at < small.size(); ++at) {
      for (int change : {0x01, 0x10, 0x80, 0xff}) {
        std::string changed = small;
        changed[at] = static_cast<char>(changed[at] ^ change);
        refused += result_of(changed, encoding, 4000, 11) != Inflated::ok;
      }
    }
    // gzip's header has bytes that mean nothing here: time, system
    CHECK(refused >= 4 * (small.size() - 10));
  }
}
