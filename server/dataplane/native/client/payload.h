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

// What is right without being equal bit by bit: batches of other sizes round differently. Not for several threads.
struct Nearness {
  double tolerance = 0.0;  // absolute
  uint64_t inexact = 0;    // of right answers: how many were not equal bit by bit
  double largest_error = 0.0;

  // Whether FP32 values (of equal length) are near enough; counts them if so.
  bool near(std::string_view wanted, std::string_view got);
};

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

  const Nearness& nearness() const { return nearness_; }

 protected:
  Nearness nearness_;
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
  virtual ~Payload() = default;
  // Writes request `number`: `head` keeps what it can of the last one's memory, `tail` stays where it is.
  virtual void write(uint64_t number, std::string& head, std::string_view& tail) const = 0;
  virtual Verdict judge(uint64_t number, std::string_view framed) = 0;
  virtual const Nearness& nearness() const = 0;
  // Right answers whose values nobody knew.
  virtual uint64_t uncompared() const { return 0; }
};

// One row of FP32 values, one output.
class RowPayload : public Payload {
 public:
  RowPayload(RequestForm form, std::string output, std::unique_ptr<Values> values);

  void write(uint64_t number, std::string& head, std::string_view& tail) const override;
  Verdict judge(uint64_t number, std::string_view framed) override;
  const Nearness& nearness() const override { return values_->nearness(); }

 private:
  RequestForm form_;
  std::string output_;
  std::unique_ptr<Values> values_;
  RequestHead head_;
  Answer answer_;
};

}  // namespace podium::client
