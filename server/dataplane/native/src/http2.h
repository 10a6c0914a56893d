// The HTTP/2 and gRPC layer: sockets to messages and back. nghttp2 does HTTP/2; what is here is gRPC's framing, limits and time.
//
// It knows nothing of inference. A Door is told of calls on the IO thread that owns their connection, and answers through the
// Stream; other threads answer by `Loop::post`.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "clock.h"
#include "ref.h"
#include "rope.h"

namespace podium {

using Metadata = std::vector<std::pair<std::string, std::string>>;

// gRPC's codes that this layer itself answers with, and that lanes use.
enum class Code : int {
  ok = 0,
  cancelled = 1,
  unknown = 2,
  invalid_argument = 3,
  deadline_exceeded = 4,
  not_found = 5,
  already_exists = 6,
  permission_denied = 7,
  resource_exhausted = 8,
  failed_precondition = 9,
  aborted = 10,
  out_of_range = 11,
  unimplemented = 12,
  internal = 13,
  unavailable = 14,
  data_loss = 15,
  unauthenticated = 16
};

// 0 is no limit, but for the first two. Units are in the names. docs/CONFIG.md says what each means.
struct HttpConfig {
  uint64_t max_message_bytes = 256u << 20;
  uint64_t max_metadata_bytes = 16384;
  uint64_t max_connections = 0;
  uint64_t max_concurrent_streams = 0;
  uint64_t max_buffered_bytes = 0;  // of messages that have not arrived whole, over all connections of a loop
  uint64_t max_unread_bytes = 0;    // of answers that a connection does not read; beyond it is closed
  int64_t stalled_ms = 0;           // a message half received, or answers unread, without a byte of progress
  int64_t max_connection_idle_ms = 0;
  int64_t max_connection_age_ms = 0;
  int64_t max_connection_age_grace_ms = 30'000;
  int64_t keepalive_time_ms = 7'200'000;
  int64_t keepalive_timeout_ms = 20'000;
  bool keepalive_without_calls = false;
  int64_t min_ping_interval_ms = 300'000;
  int64_t max_pings_without_data = 2;
  int64_t max_ping_strikes = 2;
  int compression = 0;  // of answers, where the caller takes it: 0 none, 1 gzip, 2 deflate
};

class Loop;
class Connection;

// One call. Everything but `post`ing is for its loop's thread alone. It outlives its call while anybody holds it; nothing is
// sent then.
class Stream : public Counted {
 public:
  // facts, there when the door is told of the call
  std::string path;
  Metadata metadata;  // as gRPC shows it to handlers: no pseudo headers, no grpc-timeout, -bin values decoded
  int64_t arrival_ns = 0;
  int64_t deadline_ns = no_deadline_ns;
  virtual const std::string& peer() const = 0;  // "ipv4:1.2.3.4:5", "ipv6:%5B::1%5D:5", "unix:"
  virtual const Metadata& auth() const = 0;     // of the client's certificate: x509_common_name, peer_uri, peer_dns, ...
  virtual Loop& loop() = 0;

  // whoever answers it; the door's own
  Ref<Counted> lane;

  virtual bool open() const = 0;          // whether anything can still be sent
  virtual void begin(const Metadata&) {}  // the headers alone, now, with this metadata; nothing once they are sent
  virtual void send(Bytes message) = 0;   // one message with its five bytes of prefix; headers go before the first
  virtual void finish(Code code, std::string_view text, const Metadata& trailing) = 0;  // once; later calls do nothing
  virtual void read(bool wanted) = 0;       // false: take nothing more from the caller (its window closes)
  virtual size_t unsent_bytes() const = 0;  // sent, and not yet written to the socket
  virtual void watch_deadline() = 0;        // when it passes: finish(deadline_exceeded), then Door::gone
};

class Door {
 public:
  virtual ~Door() = default;
  virtual void started(Stream& stream) = 0;                  // its headers are in
  virtual void message(Stream& stream, Rope&& message) = 0;  // one whole message, inflated, without its prefix
  virtual void half_closed(Stream& stream) = 0;              // its caller sends nothing more
  virtual void gone(Stream& stream) = 0;                     // reset, lost, or out of time: nothing can be sent any more
  virtual void writable(Stream& stream) = 0;                 // unsent_bytes() has fallen to 0
  virtual void round_ended(Loop& loop) = 0;                  // all that had arrived has been handed over
  virtual void answered(Stream&, int64_t, Bytes&&) {}        // a Command's answer to one of the stream's messages
  virtual void leaving(Loop&) {}                             // the server drains: what goes on without end must end
};

// What other threads want done on a loop. `message` empty: only the end. `ends` false: more will come.
// `answers` not negative: `message` answers that message of the stream, and its door sends it when its turn comes.
struct Command {
  Ref<Stream> stream;
  Bytes message;
  int64_t answers = -1;
  bool ends = true;
  Code code = Code::ok;
  std::string text;
  Metadata trailing;
};

// One IO thread. It lives as long as its server: whoever posts must have ended before that is destroyed (after `stop` it may
// still post; nothing comes of it).
class Loop {
 public:
  virtual ~Loop() = default;
  virtual int index() const = 0;
  // Any thread. Wakes the loop only if it sleeps. `written` is called on the loop once these have been handed to their sockets.
  virtual void post(std::vector<Command>&& commands, std::function<void()> written = nullptr) = 0;
  virtual void call(std::function<void()> function) = 0;  // any thread; runs on the loop
};

// PEM texts. `roots` empty: callers need no certificate.
struct TlsFiles {
  std::string chain, key, roots;
};

// Counted since the start, read by any thread.
struct HttpCounters {
  uint64_t connections_open, connections_accepted, connections_refused, streams_open, streams_started, streams_refused;
  uint64_t bytes_received, bytes_sent, protocol_errors, floods, stalled, tls_failures;
  uint64_t bytes_copied;  // of messages, once more on their way to the socket
};

// Listens, and runs `io_threads` loops. Thread-safe.
class HttpServer {
 public:
  virtual ~HttpServer() = default;
  // `fd` is a bound and listening socket, TCP or unix; taken over. Before `start`, any number of times.
  virtual void listen(int fd, bool tls) = 0;
  // What handshakes use from now on. Throws std::runtime_error with OpenSSL's reason.
  virtual void set_tls(const TlsFiles& files) = 0;
  // Asked on the loop's thread before a handshake: time to call set_tls if the files have changed. May be empty.
  virtual void on_handshake(std::function<void()> check) = 0;
  virtual void start() = 0;
  // No new connections, GOAWAY on those there are; calls that are open go on. Returns at once.
  virtual void drain() = 0;
  // Until no call is open; false if the time ran out first.
  virtual bool wait_drained(double timeout_s) = 0;
  // Ends every call that is left (unavailable), closes every connection, joins the threads. Idempotent.
  virtual void stop() = 0;
  virtual HttpCounters counters() const = 0;
  virtual Loop& loop(int index) = 0;
};

std::unique_ptr<HttpServer> make_http_server(const HttpConfig& config, Door& door, int io_threads);

}  // namespace podium
