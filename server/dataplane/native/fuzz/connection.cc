// A whole connection with any bytes: nothing breaks, nothing leaks, and the server still serves.
//
// Input: one byte of modes, then either bytes as they go over the wire or steps that make frames, calls and messages of gRPC.
// The server's loop has no thread: the fuzzer runs its rounds, and says what time it is, so an input does the same each time.
#include <algorithm>
#include <cstdint>
#include <string>

#include "connection_caller.h"
#include "connection_frames.h"
#include "connection_server.h"

namespace {

using namespace podium;

constexpr size_t most_bytes = 128 << 10;  // written for one input
constexpr size_t most_pieces = 64;        // of those that are written one by one
constexpr int most_steps = 200;

// One connection, and what its caller has in mind.
class Conversation {
 public:
  Conversation(Served& server, Input& input, bool small_socket, bool ends)
      : server_(server), input_(input), end_(small_socket ? 4096 : 0), reads_(!small_socket), ends_(ends) {
    server_.place(&end_);
  }
  ~Conversation() { end_.close(); }

  void write(const std::string& bytes) {
    // what cannot be written is lost with the connection
    left_ -= std::min(left_, bytes.size());
    if (alive_) alive_ = end_.write(bytes.data(), bytes.size(), [this] { turn(); });
  }
  void settle() {
    server_.settle();
    if (reads_) end_.read();
  }
  // The first of it in pieces, all that is left then in one.
  void write_cut(const std::string& bytes, size_t piece) {
    size_t cut = std::min(bytes.size(), piece * most_pieces);
    for (size_t at = 0; at < cut && alive_; at += piece) {
      write(bytes.substr(at, std::min(piece, cut - at)));
      turn();
    }
    write(bytes.substr(cut));
  }
  // Until the input says that a server that ends is to be drained.
  void take_steps() {
    for (stays_ = true; stays_ && steps_ < most_steps && alive_ && left_ && !input_.empty(); ++steps_) step();
  }

  void half_close() {
    end_.half_close();
    settle();
  }

 private:
  // A step: its kind (the low four bits: a type of frame, or one of those below), whether the server sees it at once, whether
  // it is cut in pieces, whether it is repeated, of other streams if so.
  void step() {
    uint8_t what = input_.byte();
    std::string made = bytes_of(what & 15);
    if (made.empty()) return settle();
    if (what & 0x40) made = repeated(made, size_t{8} * input_.byte(), what & 0x80 ? 2 : 0);
    if (what & 0x20) {
      write_cut(made, size_t{1} + input_.byte());
    } else {
      write(made);
    }
    if (!(what & 0x10)) settle();
  }

  void turn() {
    server_.turn();
    if (reads_) end_.read();
  }

  // Of a kind that writes nothing: none.
  std::string bytes_of(int kind) {
    switch (kind) {
      case 10: {
        // 4: the headers do not end here; 128: the call is reset at once
        uint8_t stream = input_.byte(), flags = input_.byte();
        std::string call = frame(1, (flags & 0x7f) ^ 4, stream, call_headers(&input_));
        return flags & 0x80 ? call + frame(3, 0, stream, std::string("\0\0\0\10", 4)) : call;
      }
      case 11:
        return message_frame(&input_);
      case 12:
        server_.let_pass(ns_per_ms << input_.byte() % 20);
        return "";
      case 13:
        reads_ = !reads_;
        return "";
      case 14:
        server_.door().answer_late(server_.loop());
        return "";
      case 15: {
        uint8_t size = input_.byte();
        stays_ = !ends_ || size;
        return input_.bytes(size);
      }
      default: {
        uint8_t flags = input_.byte(), stream = input_.byte();
        return frame(static_cast<uint8_t>(kind), flags, stream, input_.bytes(input_.byte()));
      }
    }
  }

  // Once more and more; `stride` is added to the streams' numbers each time.
  std::string repeated(const std::string& one, size_t count, uint32_t stride) const {
    std::string all = one;
    for (size_t at = 1; at <= count && all.size() + one.size() <= left_; ++at) {
      all += moved(one, stride * static_cast<uint32_t>(at));
    }
    return all;
  }

  Served& server_;
  Input& input_;
  CallerEnd end_;
  bool reads_;
  bool ends_;  // the server does, on the way
  bool stays_ = true;
  bool alive_ = true;
  int steps_ = 0;
  size_t left_ = most_bytes;
};

// The first byte: which server (two bits), and a bit each.
enum Mode : uint8_t { begins = 4, steps = 8, small_socket = 16, half_closes = 32, in_pieces = 64, server_ends = 128 };

void converse(Served& server, Input& input, uint8_t mode) {
  Conversation conversation(server, input, mode & small_socket, mode & server_ends);
  if (mode & begins) conversation.write(preface());
  if (mode & steps) {
    conversation.take_steps();
  } else if (mode & in_pieces) {
    size_t piece = size_t{1} + input.byte();
    conversation.write_cut(input.rest(), piece);
  } else {
    conversation.write(input.rest());
  }
  conversation.settle();
  if (mode & half_closes) conversation.half_close();
  if (!(mode & server_ends)) return;
  // calls that are open go on
  server.drain();
  conversation.take_steps();
  server.stop();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (!size) return 0;
  constexpr int every = 64;
  static int count = 0;
  Input input(data, size);
  uint8_t mode = input.byte();
  if (mode & server_ends) {
    Served ending(fuzz_config(mode & 3));
    converse(ending, input, mode);
    return 0;
  }
  Served& server = served(mode & 3);
  converse(server, input, mode);
  server.require_nothing_left();
  if (count++ % every == 0) server.require_serving();
  return 0;
}
