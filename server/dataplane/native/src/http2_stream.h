// One call on its connection: headers in, messages in and out, trailers.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "http2.h"
#include "http2_framing.h"
#include "http2_output.h"
#include "http2_timers.h"

namespace podium {

class HttpConnection;
class HttpLoop;

// Who is at the other end of a connection; its calls outlive it.
struct Peer : Counted {
  std::string address;
  Metadata auth;
};

// Ownership: its connection holds it until HTTP/2 has closed it; others as long as they like.
class HttpStream final : public Stream {
 public:
  HttpStream(HttpConnection& connection, HttpLoop& loop, Ref<Peer> peer, int32_t id, int64_t now);

  const std::string& peer() const override { return peer_->address; }
  const Metadata& auth() const override { return peer_->auth; }
  Loop& loop() override;
  bool open() const override { return connection_ && !finished_; }
  void begin(const Metadata& initial) override;
  void send(Bytes message) override;
  void finish(Code code, std::string_view text, const Metadata& trailing) override;
  void read(bool wanted) override;
  size_t unsent_bytes() const override { return unsent_; }
  void watch_deadline() override;

  // What nghttp2 reports. `closed`: nothing can be received or sent any more.
  void header(std::string_view name, std::string_view value);
  void headers_ended(bool half_closes);
  void data(const uint8_t* bytes, size_t size);
  void half_closed();
  void closed();
  // Ended by this layer: the door hears of it as `gone`.
  void fail(Code code, std::string_view text);
  // Something was lacking to answer it: its connection ends. Not from within nghttp2's callbacks.
  void abandon() noexcept;

  // What nghttp2 asks for: how much of `most` can go now (`flags` are nghttp2's; -1: nothing yet), then those bytes themselves.
  ptrdiff_t offer(size_t most, uint32_t* flags);
  void transmit(const uint8_t* frame_header, size_t size, Output* output);

  int32_t id() const { return id_; }
  bool caller_done() const { return half_closed_; }
  bool answered() const { return headers_sent_; }
  bool takes_data() const { return wanted_; }
  size_t missing() const { return reader_.known() ? reader_.missing() : 0; }

 private:
  friend class HttpConnection;
  struct Sending {
    Bytes bytes;
    Ref<Counted> held;
    const uint8_t* data;
    size_t size;
  };

  void refuse(Code code, std::string text, int http_status = 200);
  void reserved_header(std::string_view name, std::string_view value);
  void encoding_header(std::string_view value);
  bool begin_message();
  void deliver();
  bool reserve();
  void release_reserved();
  void stop_receiving();
  void tell_gone();
  void submit_headers(const Metadata& initial);
  void submit_end(bool trailers_only);
  void submit_refusal();
  void passed_deadline(int64_t now);
  void passed_stall(int64_t now);
  void watch_stall();

  HttpConnection* connection_;
  HttpLoop& loop_;
  Ref<Peer> peer_;
  HttpStream* next_ = nullptr;  // of its connection
  HttpStream* previous_ = nullptr;
  int32_t id_;

  bool started_ = false;  // the door was told
  bool receiving_ = true;
  bool half_closed_ = false;
  bool headers_sent_ = false;
  bool finished_ = false;
  bool deferred_ = false;  // nghttp2 waits to hear that there is more to send
  bool wanted_ = true;
  bool drained_ = false;  // waits for the door to hear that it is writable
  bool is_post_ = false;
  bool has_type_ = false;
  int encoding_ = 0;
  int accepted_ = 0;  // what the caller takes, a bit each
  int sent_encoding_ = 0;
  int refused_status_ = 0;
  Code code_ = Code::ok;
  std::string text_;
  Metadata trailing_;
  size_t metadata_bytes_ = 0;
  size_t held_back_ = 0;  // received, but not given back to its window

  MessageReader reader_;
  size_t reserved_ = 0;

  std::vector<Sending> queue_;
  size_t head_ = 0;
  size_t sent_of_head_ = 0;
  size_t unsent_ = 0;

  int64_t progress_ns_;
  MemberTimer<HttpStream> deadline_{*this, &HttpStream::passed_deadline};
  MemberTimer<HttpStream> stall_{*this, &HttpStream::passed_stall};
};

}  // namespace podium
