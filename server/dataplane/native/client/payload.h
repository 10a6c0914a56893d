// What is sent under each number, and whether the answer to it is right. Every number has a payload of its own, or one of a
// table of known answers, so an answer that went to the wrong request is found.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "message.h"

namespace podium::client {

// In the order in which they are looked for: one answer counts once.
enum class Verdict { right, malformed, id, model, name, shape, values };
constexpr int verdicts = 7;
const char* word_of(Verdict verdict);

// Values and what must come back. Not for several threads.
class Values {
 public:
  virtual ~Values() = default;
  // FP32 values in and out.
  virtual size_t width() const = 0;
  virtual size_t answer_width() const = 0;
  // The payload of `number` is `patched` bytes that `patch` writes, and then `rest`, which stays where it is.
  virtual size_t patched_bytes() const = 0;
  virtual void patch(uint64_t number, char* to) const = 0;
  virtual std::string_view rest(uint64_t number) const = 0;
  // Whether `values` (answer_width() * 4 bytes) answer `number`.
  virtual bool right(uint64_t number, std::string_view values) = 0;

  // Of right answers: how many were not equal bit by bit, and the largest difference.
  uint64_t inexact() const { return inexact_; }
  double largest_error() const { return largest_error_; }

 protected:
  uint64_t inexact_ = 0;
  double largest_error_ = 0.0;
};

// Answers must equal the `bytes` (a multiple of 4, at least 8) that were sent.
std::unique_ptr<Values> identity_values(size_t bytes, uint64_t seed);

// Rows and answers from a file: "PDEX", then as little-endian uint32 the count of rows, their width, the answers' width; then all
// rows and all answers, as FP32. An answer is right within `tolerance` (absolute): batches of other sizes round differently.
// Throws std::runtime_error: no such file, not of this form, a length that disagrees.
std::unique_ptr<Values> expected_values(const std::string& path, double tolerance);

// Builds requests and judges answers.
class Payload {
 public:
  Payload(RequestForm form, std::string output, std::unique_ptr<Values> values);

  // Writes request `number`: `head` keeps what it can of the last one's memory.
  void write(uint64_t number, std::string& head, std::string_view& tail) const;
  Verdict judge(uint64_t number, std::string_view framed);
  const Values& values() const { return *values_; }

 private:
  RequestForm form_;
  std::string output_;
  std::unique_ptr<Values> values_;
  RequestHead head_;
  Answer answer_;
};

}  // namespace podium::client
