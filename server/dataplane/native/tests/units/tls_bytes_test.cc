#include <thread>

#include "tls_client.h"

using namespace podium;
using namespace podium::units;

namespace {

Ref<TlsContext> make_context() {
  static const Authority authority;
  static const Issued own = authority.issue({"server", {}});
  return TlsContext::make(TlsFiles{own.chain, own.key, ""});
}

struct Joined {
  Sockets sockets;
  TlsSession session;
  Caller caller;
  explicit Joined(const Ref<TlsContext>& context) : session(context, sockets.server), caller(Wishes{}, sockets.caller) {
    CHECK(shake(session, caller) == Io::ok && session.chose_h2());
  }
};

std::string pattern(size_t size) {
  std::string made(size, 0);
  for (size_t at = 0; at < size; ++at) made[at] = static_cast<char>(at * 31 + at / 251);
  return made;
}

}  // namespace

TEST(bytes_come_through_and_all_that_is_held_is_read) {
  Joined joined(make_context());
  std::string sent = pattern(5000), got;
  for (int record = 0; record < 5; ++record) {
    CHECK_EQUAL(SSL_write(joined.caller.get(), sent.data() + record * 1000, 1000), 1000);
  }
  uint8_t buffer[300];
  size_t count = 0;
  Io io;
  while ((io = joined.session.read(buffer, sizeof buffer, &count)) == Io::ok) {
    CHECK(count > 0);
    got.append(reinterpret_cast<char*>(buffer), count);
  }
  CHECK(io == Io::want_read && count == 0);
  CHECK(got == sent);
}

TEST(a_full_socket_takes_a_part_and_the_rest_from_another_address) {
  Joined joined(make_context());
  std::string sent = pattern(3'000'000), got, copies[2];
  size_t put = 0, waits = 0;
  while (got.size() < sent.size()) {
    // a second attempt is made with another copy: the bytes stay the same, where they are does not
    std::string& rest = copies[waits % 2];
    rest = sent.substr(put, 100'000);
    size_t count = 0;
    Io io = rest.empty() ? Io::want_write : joined.session.write(reinterpret_cast<uint8_t*>(rest.data()), rest.size(), &count);
    CHECK((io == Io::ok) == (count > 0));
    put += count;
    if (io == Io::ok) continue;
    CHECK(io == Io::want_write);
    ++waits;
    char buffer[20'000];
    int size;
    while ((size = SSL_read(joined.caller.get(), buffer, sizeof buffer)) > 0) got.append(buffer, static_cast<size_t>(size));
  }
  CHECK(waits > 2);
  CHECK(got == sent);
}

TEST(nothing_is_read_or_written_of_nothing) {
  Joined joined(make_context());
  size_t count = 7;
  CHECK(joined.session.write(nullptr, 0, &count) == Io::ok && count == 0);
  CHECK(joined.session.read(nullptr, 0, &count) == Io::ok && count == 0);
}

TEST(an_end_is_an_end_with_a_goodbye_or_without) {
  uint8_t byte;
  size_t count = 0;
  Joined polite(make_context()), rude(make_context());
  SSL_shutdown(polite.caller.get());
  CHECK(polite.session.read(&byte, 1, &count) == Io::closed);
  rude.sockets.hang_up();
  CHECK(rude.session.read(&byte, 1, &count) == Io::closed);
}

TEST(writing_to_whoever_has_gone_ends_nothing_but_the_connection) {
  Joined joined(make_context());
  joined.sockets.hang_up();
  uint8_t byte = 0;
  size_t count = 0;
  CHECK(joined.session.write(&byte, 1, &count) == Io::closed);
  CHECK_EQUAL(joined.session.failure(), "Broken pipe");
  CHECK(joined.session.write(&byte, 1, &count) == Io::failed);
  joined.session.close();
}

TEST(bytes_changed_on_the_way_are_refused) {
  Joined joined(make_context());
  const char record[] = "\x17\x03\x03\0\x20 these are not what was agreed on";
  CHECK(send(joined.sockets.caller, record, 5 + 32, 0) == 37);
  uint8_t byte;
  size_t count = 0;
  CHECK(joined.session.read(&byte, 1, &count) == Io::failed);
  CHECK_EQUAL(joined.session.failure(), "decryption failed or bad record mac");
}

TEST(another_sessions_errors_are_not_this_ones) {
  Joined joined(make_context());
  uint8_t byte = 0;
  size_t count = 0;
  ERR_raise(ERR_LIB_SSL, SSL_R_BAD_LENGTH);
  CHECK(joined.session.read(&byte, 1, &count) == Io::want_read);
  std::string much = pattern(1'000'000);
  Io io = Io::ok;
  while (io == Io::ok) {
    ERR_raise(ERR_LIB_SSL, SSL_R_BAD_LENGTH);
    io = joined.session.write(reinterpret_cast<uint8_t*>(much.data()), much.size(), &count);
  }
  CHECK(io == Io::want_write);
}

TEST(close_says_goodbye_once) {
  Joined joined(make_context());
  joined.session.close();
  joined.session.close();
  char byte;
  CHECK(SSL_read(joined.caller.get(), &byte, 1) == 0);
  CHECK_EQUAL(SSL_get_error(joined.caller.get(), 0), SSL_ERROR_ZERO_RETURN);
  Sockets sockets;
  TlsSession early(make_context(), sockets.server);
  early.close();
  CHECK(recv(sockets.caller, &byte, 1, 0) < 0);
}

TEST(renegotiation_is_refused) {
  Sockets sockets;
  Wishes wishes;
  wishes.most = TLS1_2_VERSION;
  TlsSession session(make_context(), sockets.server);
  Caller caller(wishes, sockets.caller);
  CHECK(shake(session, caller) == Io::ok);
  CHECK(SSL_renegotiate(caller.get()) == 1 && caller.shake() == 0);
  uint8_t byte;
  size_t count = 0;
  CHECK(session.read(&byte, 1, &count) == Io::want_read);
  CHECK_EQUAL(caller.shake(), -1);
}

TEST(one_context_serves_many_threads_while_others_replace_it) {
  std::vector<std::thread> threads;
  Ref<TlsContext> shared = make_context();
  std::vector<std::string> failures(4);
  for (std::string& failure : failures) {
    threads.emplace_back([&failure, shared] {
      try {
        for (int round = 0; round < 10; ++round) {
          Joined mine(round % 2 ? shared : make_context());
          CHECK_EQUAL(SSL_write(mine.caller.get(), "x", 1), 1);
          uint8_t byte = 0;
          size_t count = 0;
          CHECK(mine.session.read(&byte, 1, &count) == Io::ok && byte == 'x');
        }
      } catch (const std::exception& error) {
        failure = error.what();
      }
    });
  }
  shared = Ref<TlsContext>();
  for (std::thread& thread : threads) thread.join();
  for (const std::string& failure : failures) CHECK_EQUAL(failure, "");
}
