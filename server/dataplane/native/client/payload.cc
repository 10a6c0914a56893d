#include "payload.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>

namespace podium::client {

namespace {

// Windows into one table of random numbers, headed by the request's number as two floats that hold 24 bits each exactly. So
// payloads cost nothing to make, differ from each other, and are compared as fast as memory goes.
class Identity : public Values {
 public:
  Identity(size_t bytes, uint64_t seed) : width_(bytes / sizeof(float)), table_(window_starts + bytes / sizeof(float)) {
    std::mt19937_64 random(seed);
    std::uniform_real_distribution<float> value(-1.0f, 1.0f);
    for (float& each : table_) each = value(random);
  }

  size_t width() const override { return width_; }
  size_t answer_width() const override { return width_; }
  size_t patched_bytes() const override { return number_bytes; }

  void patch(uint64_t number, char* to) const override {
    const float halves[2] = {static_cast<float>(number & 0xffffff), static_cast<float>(number >> 24 & 0xffffff)};
    std::memcpy(to, halves, number_bytes);
  }

  std::string_view rest(uint64_t number) const override {
    // a step that is odd, and prime, visits all windows before it comes back
    const size_t start = number * 7919 % window_starts;
    return {reinterpret_cast<const char*>(table_.data() + start), width_ * sizeof(float) - number_bytes};
  }

  bool right(uint64_t number, std::string_view values) override {
    char head[number_bytes];
    patch(number, head);
    const std::string_view tail = rest(number);
    return std::memcmp(values.data(), head, number_bytes) == 0 &&
           std::memcmp(values.data() + number_bytes, tail.data(), tail.size()) == 0;
  }

 private:
  static constexpr size_t number_bytes = 2 * sizeof(float), window_starts = size_t{1} << 16;
  size_t width_;
  std::vector<float> table_;
};

class Expected : public Values {
 public:
  Expected(const std::string& path, double tolerance) {
    nearness_.tolerance = tolerance;
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + path);
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    uint32_t head[4];
    if (bytes.size() < sizeof head || bytes.compare(0, 4, "PDEX") != 0) {
      throw std::runtime_error(path + " holds no expected rows");
    }
    std::memcpy(head, bytes.data(), sizeof head);
    rows_ = head[1];
    width_ = head[2];
    answer_width_ = head[3];
    const unsigned __int128 floats = static_cast<unsigned __int128>(rows_) * (uint64_t{width_} + answer_width_);
    if (rows_ == 0 || width_ == 0 || answer_width_ == 0 || floats * sizeof(float) != bytes.size() - sizeof head) {
      throw std::runtime_error(path + " is not as long as its head says");
    }
    table_.resize(static_cast<size_t>(floats));
    std::memcpy(table_.data(), bytes.data() + sizeof head, bytes.size() - sizeof head);
  }

  size_t width() const override { return width_; }
  size_t answer_width() const override { return answer_width_; }
  size_t patched_bytes() const override { return 0; }
  void patch(uint64_t, char*) const override {}

  std::string_view rest(uint64_t number) const override {
    return {reinterpret_cast<const char*>(table_.data() + number % rows_ * width_), width_ * sizeof(float)};
  }

  bool right(uint64_t number, std::string_view values) override {
    const float* wanted = table_.data() + rows_ * width_ + number % rows_ * answer_width_;
    return nearness_.near({reinterpret_cast<const char*>(wanted), answer_width_ * sizeof(float)}, values);
  }

 private:
  size_t rows_ = 0;
  uint32_t width_ = 0, answer_width_ = 0;
  std::vector<float> table_;
};

}  // namespace

bool Nearness::near(std::string_view wanted, std::string_view got) {
  if (std::memcmp(got.data(), wanted.data(), wanted.size()) == 0) return true;
  double error = 0.0;
  for (size_t place = 0; place + sizeof(float) <= wanted.size(); place += sizeof(float)) {
    float one, other;
    std::memcpy(&one, wanted.data() + place, sizeof one);
    std::memcpy(&other, got.data() + place, sizeof other);
    const double difference = std::fabs(static_cast<double>(other) - one);
    if (!(difference <= tolerance)) return false;  // NaN is not within anything
    error = std::max(error, difference);
  }
  ++inexact;
  largest_error = std::max(largest_error, error);
  return true;
}

const char* word_of(Verdict verdict) {
  static const char* const words[verdicts] = {"right", "malformed", "id", "model", "name", "shape", "values"};
  return words[static_cast<int>(verdict)];
}

std::unique_ptr<Values> identity_values(size_t bytes, uint64_t seed) {
  if (bytes < 8 || bytes % sizeof(float) != 0) throw std::runtime_error("a payload has at least 8 bytes, and whole floats");
  return std::make_unique<Identity>(bytes, seed);
}

std::unique_ptr<Values> expected_values(const std::string& path, double tolerance) {
  return std::make_unique<Expected>(path, tolerance);
}

RowPayload::RowPayload(RequestForm form, std::string output, std::unique_ptr<Values> values)
    : form_(std::move(form)), output_(std::move(output)), values_(std::move(values)) {
  form_.width = values_->width();
  head_ = request_head(form_);
  head_.bytes.append(values_->patched_bytes(), '\0');
}

void RowPayload::write(uint64_t number, std::string& head, std::string_view& tail) const {
  head = head_.bytes;
  write_id(number, head.data() + head_.id_at);
  values_->patch(number, head.data() + head.size() - values_->patched_bytes());
  tail = values_->rest(number);
}

Verdict RowPayload::judge(uint64_t number, std::string_view framed) {
  if (!read_answer(framed, answer_) || answer_.outputs != 1 || answer_.tensors != 1) return Verdict::malformed;
  char id[id_bytes];
  write_id(number, id);
  if (answer_.id != std::string_view(id, id_bytes)) return Verdict::id;
  if (answer_.model != form_.model || (!form_.version.empty() && answer_.version != form_.version)) return Verdict::model;
  if (answer_.output != output_ || answer_.datatype != "FP32") return Verdict::name;
  const auto width = static_cast<int64_t>(values_->answer_width());
  if (answer_.shape.size() != 2 || answer_.shape[0] != 1 || answer_.shape[1] != width) return Verdict::shape;
  if (answer_.values.size() != values_->answer_width() * sizeof(float)) return Verdict::shape;
  return values_->right(number, answer_.values) ? Verdict::right : Verdict::values;
}

}  // namespace podium::client
