// The client's side of one HTTP/2 connection (prior knowledge) with unary gRPC calls on it. It knows frames, not messages.
#pragma once

#include <nghttp2/nghttp2.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "socket.h"

namespace podium::client {

// One call, filled in by the caller and then by the connection. Its memory is the caller's and must stay until `ended`.
struct Call {
  // the length-prefixed message: `head`, then `tail` (so that a large payload is never copied into place)
  std::string head;
  std::string_view tail;

  std::string body;          // all data of the answer, prefix included
  int http_status = 0;       // 0: no headers came
  int grpc_status = -1;      // -1: none came
  std::string grpc_message;  // as it came, percent-encoded
  bool complete = false;     // the server ended the stream

  int32_t stream_id = 0;
  size_t sent_bytes = 0;
  size_t place = 0;  // in the connection's list
};

// How a call ended. `answered` says that headers, data and trailers are all there, not that they are good.
enum class Ending { answered, reset, refused, lost };

class Connection {
 public:
  // Told from within `on_ready` and `close`; may not call back into the connection.
  class Owner {
   public:
    virtual ~Owner() = default;
    // `code`: the HTTP/2 error code of a reset. The call belongs to the owner again.
    virtual void call_ended(Connection& connection, Call& call, Ending ending, uint32_t code) = 0;
  };

  // Header fields are the same for every call; `target`, `fields` and `owner` outlive the connection. `epoll` is not owned; its
  // events carry the address of the connection. `place` is whatever the owner wants to find by it.
  Connection(const Target& target, const std::vector<nghttp2_nv>& fields, Owner& owner, int epoll, void* place);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Starts connecting; only after construction or a close. False if the socket was refused at once (errno).
  bool open();
  // Puts a call on the wire at the next `flush`. False if this connection takes no more calls: see `usable`.
  bool submit(Call& call);
  // Handles what epoll reported. Returns false when the connection is over; then `close` it.
  bool on_ready(uint32_t events);
  // Writes what is waiting. Returns false when the connection is over.
  bool flush();
  // Ends it, in good order where possible; open calls end as `lost`, or as `refused` if the server never saw them.
  void close();

  void* place() const { return place_; }
  bool usable() const { return established_ && !leaving_; }
  // The server has said that it takes no further calls here.
  bool leaving() const { return leaving_; }
  bool established() const { return established_; }
  size_t open_calls() const { return calls_.size(); }
  // The instant at which the bytes that are being handled were read.
  int64_t read_ns() const { return read_ns_; }

 private:
  friend struct Callbacks;
  void start_session();
  void watch(bool writing);
  bool read_all();
  void end(Call& call, Ending ending, uint32_t code);
  bool over() const;

  const Target& target_;
  const std::vector<nghttp2_nv>& fields_;
  Owner& owner_;
  int epoll_, descriptor_ = -1;
  void* place_;
  bool established_ = false, leaving_ = false, watching_writes_ = false;
  int64_t read_ns_ = 0;
  int32_t last_stream_id_ = 0;  // of a GOAWAY: later streams were not looked at
  nghttp2_session* session_ = nullptr;
  std::vector<Call*> calls_;
  std::string out_;
  size_t written_ = 0;
};

}  // namespace podium::client
