#include "http2_stream.h"

#include <algorithm>

#include "compression.h"
#include "grpc_text.h"
#include "http2_connection.h"
#include "http2_loop.h"

namespace podium {

HttpStream::HttpStream(HttpConnection& connection, HttpLoop& loop, Ref<Peer> peer, int32_t id, int64_t now)
    : connection_(&connection), loop_(loop), peer_(std::move(peer)), id_(id), progress_ns_(now) {
  arrival_ns = now;
}

Loop& HttpStream::loop() { return loop_; }

void HttpStream::data(const uint8_t* bytes, size_t size) {
  if (!receiving_) return;
  progress_ns_ = loop_.now();
  for (;;) {
    if (!reader_.known()) {
      size_t taken = reader_.take_prefix(bytes, size);
      bytes += taken;
      size -= taken;
      if (!reader_.known()) break;
      if (!begin_message()) return;
    }
    size_t taken = reader_.take_body(loop_.received().slab(), bytes, size);
    bytes += taken;
    size -= taken;
    if (!reader_.whole()) break;
    deliver();
    if (!receiving_) return;
  }
  if (reader_.between() || !reserve()) return;
  watch_stall();
}

bool HttpStream::begin_message() {
  uint64_t most = loop_.config().max_message_bytes;
  if (reader_.size() > most) {
    fail(Code::resource_exhausted,
         "SERVER: Received message larger than max (" + std::to_string(reader_.size()) + " vs. " + std::to_string(most) + ")");
  } else if (!reader_.prefix_valid()) {
    fail(Code::internal, "Received a message with unknown flags");
  } else if (reader_.compressed() && !encoding_) {
    fail(Code::internal, "Compression bit set but no encoding configured");
  } else {
    connection_->widen(*this, reader_.size());
    return true;
  }
  return false;
}

void HttpStream::deliver() {
  bool compressed = reader_.compressed();
  Rope message = reader_.take();
  release_reserved();
  if (compressed) {
    Rope inflated;
    uint64_t most = loop_.config().max_message_bytes;
    switch (inflate(message, encoding_, most, &inflated)) {
      case Inflated::malformed:
        return fail(Code::internal, "Decompression failed due to zlib error");
      case Inflated::too_large:
        return fail(Code::resource_exhausted, "SERVER: Received message larger than max (more than " + std::to_string(most) +
                                                  " decompressed vs. " + std::to_string(most) + ")");
      case Inflated::ok:
        message = std::move(inflated);
    }
  }
  loop_.door().message(*this, std::move(message));
}

bool HttpStream::reserve() {
  if (reserved_ || !reader_.known()) return true;
  if (!loop_.reserve(reader_.size())) {
    fail(Code::resource_exhausted, "Too many bytes of messages that have not arrived whole");
    return false;
  }
  reserved_ = reader_.size();
  return true;
}

void HttpStream::release_reserved() {
  loop_.release(reserved_);
  reserved_ = 0;
}

void HttpStream::half_closed() {
  if (half_closed_) return;
  half_closed_ = true;
  if (!receiving_) return;
  if (!reader_.between()) return fail(Code::internal, "The call's last message is cut off");
  receiving_ = false;
  loop_.door().half_closed(*this);
}

void HttpStream::stop_receiving() {
  receiving_ = false;
  reader_.drop();
  release_reserved();
  if (!wanted_) read(true);
}

void HttpStream::tell_gone() {
  if (!started_) return;
  started_ = false;
  loop_.door().gone(*this);
}

void HttpStream::fail(Code code, std::string_view text) {
  if (!open()) return;
  finish(code, text, {});
  tell_gone();
}

void HttpStream::closed() {
  HttpConnection* connection = std::exchange(connection_, nullptr);
  loop_.timers().cancel(deadline_);
  loop_.timers().cancel(stall_);
  receiving_ = false;
  reader_.drop();
  release_reserved();
  connection->unsent(-static_cast<ptrdiff_t>(unsent_));
  unsent_ = 0;
  queue_.clear();
  head_ = 0;
  if (!finished_) tell_gone();
}

void HttpStream::read(bool wanted) {
  wanted_ = wanted;
  if (!wanted || !connection_) return;
  connection_->open_window(*this, std::exchange(held_back_, 0));
}

void HttpStream::watch_deadline() {
  if (open() && deadline_ns < no_deadline_ns) loop_.timers().set(deadline_, deadline_ns);
}

void HttpStream::passed_deadline(int64_t) {
  Ref<HttpStream> self(*this);
  try {
    fail(Code::deadline_exceeded, "Deadline Exceeded");
  } catch (...) {
    abandon();
  }
}

void HttpStream::abandon() noexcept {
  if (connection_) connection_->lost();
}

// Armed while a message is half received or answers are unread, and not moved by progress: it looks when it is due.
void HttpStream::watch_stall() {
  int64_t stalled_ms = loop_.config().stalled_ms;
  if (stalled_ms && !stall_.armed()) loop_.timers().set(stall_, progress_ns_ + stalled_ms * ns_per_ms);
}

void HttpStream::passed_stall(int64_t now) {
  Ref<HttpStream> self(*this);
  bool receiving = receiving_ && wanted_ && !reader_.between();
  if (!connection_ || (!receiving && !unsent_)) return;
  if (now < progress_ns_ + loop_.config().stalled_ms * ns_per_ms) return watch_stall();
  loop_.tallies().stalled.add();
  if (unsent_) {
    // trailers would wait behind what it does not read
    connection_->reset(*this, NGHTTP2_CANCEL);
    if (!std::exchange(finished_, true)) tell_gone();
  } else {
    fail(Code::deadline_exceeded, "The call's message has stopped arriving");
  }
}

}  // namespace podium
