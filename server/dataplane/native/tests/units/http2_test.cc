// The parts of the HTTP/2 layer that need no socket: framing, timers, output, memory.
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "http2_framing.h"
#include "http2_output.h"
#include "http2_pool.h"
#include "http2_timers.h"

using namespace podium;

namespace {

std::vector<uint8_t> counted(size_t size) {
  std::vector<uint8_t> bytes(size);
  std::iota(bytes.begin(), bytes.end(), uint8_t{0});
  return bytes;
}

std::vector<uint8_t> framed(const std::vector<uint8_t>& message) {
  std::vector<uint8_t> bytes(5 + message.size());
  for (size_t at = 0; at < 4; ++at) bytes[1 + at] = static_cast<uint8_t>(message.size() >> (24 - 8 * at));
  std::copy(message.begin(), message.end(), bytes.begin() + 5);
  return bytes;
}

std::vector<uint8_t> text_of(const Rope& rope) {
  std::vector<uint8_t> bytes(rope.size());
  rope.copy(0, rope.size(), bytes.data());
  return bytes;
}

// All messages of `sent`, handed over in pieces of `piece` bytes.
std::vector<std::vector<uint8_t>> read_in_pieces(const std::vector<uint8_t>& sent, size_t piece) {
  std::vector<std::vector<uint8_t>> messages;
  MessageReader reader;
  for (size_t at = 0; at < sent.size(); at += piece) {
    size_t left = std::min(piece, sent.size() - at);
    Ref<Slab> slab = Slab::make(left);
    std::memcpy(slab->data(), sent.data() + at, left);
    const uint8_t* bytes = slab->data();
    for (;;) {
      size_t taken = reader.known() ? 0 : reader.take_prefix(bytes, left);
      bytes += taken;
      left -= taken;
      if (!reader.known()) break;
      taken = reader.take_body(slab, bytes, left);
      bytes += taken;
      left -= taken;
      if (!reader.whole()) break;
      messages.push_back(text_of(reader.take()));
      CHECK(reader.between());
    }
  }
  CHECK(reader.between());
  return messages;
}

struct Fired final : Timer {
  void fire(int64_t) override { ++count; }
  int count = 0;
};

}  // namespace

TEST(messages_are_the_same_however_they_are_cut) {
  const std::vector<std::vector<uint8_t>> messages = {{},           counted(1), counted(5), {}, counted(4095), counted(70'000),
                                                      counted(4097)};
  std::vector<uint8_t> sent;
  for (const auto& message : messages) {
    std::vector<uint8_t> one = framed(message);
    sent.insert(sent.end(), one.begin(), one.end());
  }
  for (size_t piece : {1, 2, 5, 6, 1000, 4096, 5000, 20'000, 1'000'000}) CHECK(read_in_pieces(sent, piece) == messages);
}

TEST(small_pieces_do_not_hold_the_buffer_they_came_in) {
  MessageReader reader;
  const std::vector<uint8_t> sent = framed(counted(10'000));
  reader.take_prefix(sent.data(), 5);
  Ref<Slab> slab = Slab::make(9'000);
  CHECK_EQUAL(reader.take_body(slab, slab->data(), 4'095), size_t{4'095});
  CHECK(slab->alone());
  CHECK_EQUAL(reader.take_body(slab, slab->data(), 4'096), size_t{4'096});
  CHECK(!slab->alone());
  CHECK_EQUAL(reader.missing(), size_t{10'000 - 4'095 - 4'096});
  reader.drop();
  CHECK(slab->alone());
}

TEST(small_pieces_that_go_on_from_a_held_one_are_held) {
  MessageReader reader;
  const std::vector<uint8_t> body = counted(20'000), sent = framed(body);
  reader.take_prefix(sent.data(), 5);
  Ref<Slab> slab = Slab::make(20'000);
  std::memcpy(slab->data(), body.data(), 20'000);
  reader.take_body(slab, slab->data(), 5'000);
  reader.take_body(slab, slab->data() + 5'000, 10);      // where the held piece ends
  reader.take_body(slab, slab->data() + 5'010, 10'000);  // again, and large
  Ref<Slab> other = Slab::make(4'990);
  std::memcpy(other->data(), body.data() + 15'010, 4'990);
  reader.take_body(other, other->data(), 990);          // small, and elsewhere
  reader.take_body(other, other->data() + 990, 4'000);  // follows one that was copied
  CHECK(reader.whole());
  const Rope message = reader.take();
  CHECK_EQUAL(message.copied(), size_t{4'990});
  CHECK(other->alone());
  CHECK_EQUAL(message.pieces().front().size, size_t{15'010});
  CHECK(text_of(message) == body);
}

TEST(timers_fire_in_time_and_not_when_cancelled) {
  constexpr int count = 500;
  std::minstd_rand random(7);
  std::vector<Fired> fired(count);
  std::vector<int64_t> due(count);
  Timers timers;
  for (int round = 0; round < 3; ++round) {
    for (size_t at = 0; at < count; ++at) timers.set(fired[at], due[at] = static_cast<int64_t>(random() % 1000));
  }
  for (size_t at = 0; at < count; at += 3) timers.cancel(fired[at]);
  for (int64_t now = 0; now < 1000; now += 10) {
    timers.fire(now);
    CHECK(timers.next_due_ns() > now);
    for (size_t at = 0; at < count; ++at) CHECK_EQUAL(fired[at].count, at % 3 && due[at] <= now ? 1 : 0);
  }
  for (const Fired& one : fired) CHECK(!one.armed() || one.due_ns() > 990);
  for (Fired& one : fired) timers.cancel(one);
  CHECK_EQUAL(timers.next_due_ns(), no_deadline_ns);
}

TEST(output_keeps_its_order_through_partial_writes) {
  Bump bump(256);
  std::minstd_rand random(11);
  std::vector<uint8_t> given, taken;
  Output output(bump);
  for (int step = 0; step < 3000; ++step) {
    std::vector<uint8_t> bytes = counted(1 + random() % 300);
    given.insert(given.end(), bytes.begin(), bytes.end());
    if (random() % 4) {
      output.copy(bytes.data(), bytes.size());
    } else {
      Ref<Slab> slab = Slab::make(bytes.size());
      std::memcpy(slab->data(), bytes.data(), bytes.size());
      output.hold(Ref<Counted>(*slab), slab->data(), bytes.size());
    }
    if (random() % 7 == 0) output.settle();
    iovec pieces[4];
    size_t most = random() % 700, written = 0;
    for (int at = 0, count = output.gather(pieces, 4); at < count && written < most; ++at) {
      size_t part = std::min(pieces[at].iov_len, most - written);
      const auto* bytes_of = static_cast<const uint8_t*>(pieces[at].iov_base);
      taken.insert(taken.end(), bytes_of, bytes_of + part);
      written += part;
    }
    output.written(written);
    CHECK_EQUAL(output.pending(), given.size() - taken.size());
  }
  CHECK(std::equal(taken.begin(), taken.end(), given.begin()));
}

TEST(output_that_waits_leaves_the_shared_buffer) {
  Bump bump(1024);
  Output output(bump);
  const std::vector<uint8_t> bytes = counted(100);
  output.copy(bytes.data(), bytes.size());
  CHECK(!bump.slab()->alone());
  output.settle();
  CHECK(bump.slab()->alone());
  CHECK_EQUAL(output.pending(), size_t{100});
}

TEST(pooled_memory_keeps_what_is_written_into_it) {
  Pool pool;
  nghttp2_mem* memory = pool.memory();
  std::minstd_rand random(13);
  std::vector<std::pair<uint8_t*, size_t>> pieces;
  for (int step = 0; step < 5000; ++step) {
    size_t size = random() % 2000;
    if (pieces.size() > 50) {
      auto& [bytes, old] = pieces[random() % pieces.size()];
      for (size_t at = 0; at < old; ++at) CHECK_EQUAL(int{bytes[at]}, static_cast<int>(old % 251));
      if (random() % 2) {
        bytes = static_cast<uint8_t*>(memory->realloc(bytes, size, memory->mem_user_data));
        for (size_t at = 0; at < std::min(old, size); ++at) CHECK_EQUAL(int{bytes[at]}, static_cast<int>(old % 251));
      } else {
        memory->free(bytes, memory->mem_user_data);
        bytes = static_cast<uint8_t*>(memory->calloc(1, size, memory->mem_user_data));
        for (size_t at = 0; at < size; ++at) CHECK_EQUAL(int{bytes[at]}, 0);
      }
      old = size;
      std::memset(bytes, static_cast<int>(size % 251), size);
    } else {
      auto* bytes = static_cast<uint8_t*>(memory->malloc(size, memory->mem_user_data));
      std::memset(bytes, static_cast<int>(size % 251), size);
      pieces.emplace_back(bytes, size);
    }
  }
  CHECK(memory->calloc(SIZE_MAX, 2, memory->mem_user_data) == nullptr);
  for (auto& [bytes, size] : pieces) memory->free(bytes, memory->mem_user_data);
}
