// One connection: a socket, perhaps TLS, an HTTP/2 session, and the limits on all of that.
#pragma once

#include <nghttp2/nghttp2.h>

#include <memory>
#include <string>
#include <vector>

#include "age_policy.h"
#include "flood_policy.h"
#include "http2_loop.h"
#include "http2_output.h"
#include "http2_stream.h"
#include "ping_policy.h"
#include "tls.h"

namespace podium {

// Ownership: its loop's; that thread only.
class HttpConnection final : public Watched {
 public:
  // Takes `fd` over. `tls` may be empty.
  HttpConnection(HttpLoop& loop, int fd, std::string address, Ref<TlsContext> tls);
  ~HttpConnection() override;

  // Throws where memory or a resource is lacking; to be destroyed then.
  void open();
  void ready(uint32_t events) override;
  void lost() noexcept override;
  // To be flushed at the end of the round.
  void touch();
  void flush();
  // GOAWAY; open calls go on.
  void drain();
  // Ends what is open and closes the socket. Not from within nghttp2's callbacks.
  void close();
  // Ends every call that is left, writes what the socket takes at once, and closes.
  void stop();
  bool closed() const { return fd_ < 0; }

  // For streams.
  nghttp2_session* session() { return session_; }
  void resume(HttpStream& stream);
  void reset(HttpStream& stream, uint32_t error);
  void widen(HttpStream& stream, size_t message_bytes);
  void give_back(HttpStream& stream, size_t size);    // received: to the windows
  void open_window(HttpStream& stream, size_t size);  // what was held back of its own
  // False where more than it may leave unread waits already: it is closed at the end of the round. So a single answer may be
  // larger than that.
  bool takes_answers();
  void unsent(ptrdiff_t change) { unsent_ += static_cast<size_t>(change); }
  void writable(HttpStream& stream);

  // To the door, of what was flushed.
  void deliver_writable();
  bool has_writable() const { return !writable_.empty(); }

 private:
  friend struct SessionCallbacks;
  // gathered, but not written, before nghttp2 is asked for no more
  static constexpr size_t high_water_bytes = 1 << 20;
  // of frames that wait for a blocked socket, besides those of calls
  static constexpr size_t max_queued_frames = 4096;
  enum class Phase { handshake, open, lingering };

  void make_session();
  void submit_settings();
  void handshake();
  void receive();
  bool receive_once(size_t* budget);
  TlsSession::Io socket_read(uint8_t* target, size_t capacity, size_t* got);
  TlsSession::Io socket_write(size_t* put);
  bool gather();
  bool write_out();
  void set_blocked(bool blocked);
  void watch(bool writes);
  void tick(int64_t now);
  void rearm();
  void final_goaway();
  void linger();
  void calm(const char* reason);  // GOAWAY, ENHANCE_YOUR_CALM
  void fail_session(int error);
  bool tick_stalled(int64_t now);

  void pinged(const nghttp2_frame* frame);
  void reset_by_caller(HttpStream* stream);
  void sent_data();
  HttpStream* begin_stream(int32_t id);
  void end_stream(HttpStream& stream);

  HttpLoop& loop_;
  int fd_;
  Ref<Peer> peer_;
  Ref<TlsContext> tls_context_;
  std::unique_ptr<TlsSession> tls_;
  nghttp2_session* session_ = nullptr;
  Output output_;
  Phase phase_ = Phase::open;
  HttpStream* streams_ = nullptr;
  size_t calls_ = 0;
  size_t unsent_ = 0;
  std::vector<Ref<HttpStream>> writable_;

  bool touched_ = false;
  bool blocked_ = false;  // the socket takes no more
  bool watches_writes_ = false;
  bool heard_ = false;  // its first frame
  bool draining_ = false;
  bool final_goaway_ = false;
  bool overfull_ = false;  // it does not read its answers
  bool calmed_ = false;    // sent away for too many frames
  size_t missing_ = 0;     // of the message that the last read left unfinished

  PingStrikes strikes_;
  Keepalive keepalive_;
  AgePolicy age_;
  FloodPolicy flood_;
  int64_t opened_ns_;
  int64_t written_ns_;                   // last progress of writing
  int64_t headers_ns_ = no_deadline_ns;  // since when those of a call have been arriving
  int32_t headers_of_ = 0;
  int64_t settle_ns_ = no_deadline_ns;  // when draining or lingering goes one step further
  MemberTimer<HttpConnection> timer_{*this, &HttpConnection::tick};
};

}  // namespace podium
