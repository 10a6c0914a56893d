// What a fuzzed caller sends: frames of HTTP/2, calls and messages of gRPC, made of a fuzzer's bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>

#include "compression.h"
#include "http2.h"

namespace podium {

// The fuzzer's bytes, taken from the front; zeros and nothing once they are used up.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), left_(size) {}
  bool empty() const { return !left_; }
  uint8_t byte() {
    if (!left_) return 0;
    --left_;
    return *data_++;
  }
  std::string bytes(size_t most) {
    size_t size = std::min(most, left_);
    std::string taken(reinterpret_cast<const char*>(data_), size);
    data_ += size;
    left_ -= size;
    return taken;
  }
  std::string rest() { return bytes(left_); }

 private:
  const uint8_t* data_;
  size_t left_;
};

inline std::string frame(uint8_t type, uint8_t flags, uint32_t stream, const std::string& payload) {
  auto size = static_cast<uint32_t>(payload.size());
  std::string made;
  for (int shift : {16, 8, 0}) made += static_cast<char>(size >> shift & 0xff);
  made += static_cast<char>(type);
  made += static_cast<char>(flags);
  for (int shift : {24, 16, 8, 0}) made += static_cast<char>(stream >> shift & 0xff);
  return made + payload;
}

// The same frames, of other streams.
inline std::string moved(std::string frames, uint32_t further) {
  constexpr size_t stream_at = 5, header_bytes = 9;
  auto byte = [&frames](size_t at) { return static_cast<uint32_t>(static_cast<uint8_t>(frames[at])); };
  for (size_t at = 0; further && at + header_bytes <= frames.size();) {
    uint32_t stream = (byte(at + stream_at + 2) << 8 | byte(at + stream_at + 3)) + further;
    frames[at + stream_at + 2] = static_cast<char>(stream >> 8 & 0xff);
    frames[at + stream_at + 3] = static_cast<char>(stream & 0xff);
    at += header_bytes + (byte(at) << 16 | byte(at + 1) << 8 | byte(at + 2));
  }
  return frames;
}

inline std::string preface() { return "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, "") + frame(4, 1, 0, ""); }

// Literal, not indexed, not Huffman coded: neither name nor value may be longer than 126 bytes.
inline std::string literal(const std::string& name, const std::string& value) {
  return std::string(1, '\0') + static_cast<char>(name.size()) + name + static_cast<char>(value.size()) + value;
}

constexpr const char* fuzz_paths[] = {"/unary", "/stream", "/late",  "/fail",   "/early",
                                      "/begin", "/pause",  "/flood", "/silent", "/"};

// The headers of a call that is nearly well formed: which path, then what else it has, a bit each.
inline std::string call_headers(Input* input) {
  const char* path = fuzz_paths[input->byte() % std::size(fuzz_paths)];
  uint8_t with = input->byte();
  std::string block = literal(":method", with & 1 ? "GET" : "POST") + literal(":scheme", "http") + literal(":path", path) +
                      literal(":authority", "here");
  block += literal("content-type", with & 2 ? "application/json" : "application/grpc") + literal("te", "trailers");
  if (with & 4) block += literal("grpc-encoding", with & 8 ? "deflate" : "gzip");
  if (with & 8) block += literal("grpc-accept-encoding", "identity, deflate, gzip");
  if (with & 16) block += literal("grpc-timeout", input->bytes(3));
  if (with & 32) block += literal("some-bin", input->bytes(input->byte() % 32));
  if (with & 64) {
    block += literal("some", input->bytes(input->byte() % 100)) + literal("one-bin", "AAEC") + literal("two-bin", "//79/A==");
  }
  if (with & 128) block += literal(input->bytes(input->byte() % 16), "value");
  return block;
}

// A frame of data with one message: `flags` has HTTP/2's end of stream (1) and padding (8), and 64: the prefix says compressed,
// 128: it is compressed.
inline std::string message_frame(Input* input) {
  uint32_t stream = input->byte();
  uint8_t flags = input->byte();
  std::string body = input->bytes(input->byte());
  Bytes message(5 + body.size());
  std::fill_n(message.data.get(), 5, uint8_t{0});
  message.data[0] = flags & 64 ? 1 : 0;
  message.data[4] = static_cast<uint8_t>(body.size());
  std::copy(body.begin(), body.end(), message.data.get() + 5);
  if (flags & 128) message = deflate_message(std::move(message), flags & 32 ? deflate_encoding : gzip_encoding);
  std::string payload(reinterpret_cast<const char*>(message.data.get()), message.size);
  if (flags & 8) payload = std::string(1, '\3') + payload + std::string(3, '\0');
  return frame(0, flags & 9, stream, payload);
}

}  // namespace podium
