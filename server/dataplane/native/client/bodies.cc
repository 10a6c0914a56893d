#include "bodies.h"

#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace podium::client {

namespace {

class Bodies : public Payload {
 public:
  Bodies(RequestForm form, const std::string& path, double tolerance) : form_(std::move(form)) {
    nearness_.tolerance = tolerance;
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + path);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
    left_ = bytes_;
    if (take(4, path) != "PDBY") throw std::runtime_error(path + " holds no bodies");
    const uint32_t count = number(path);
    for (uint32_t place = 0; place < count; ++place) {
      const uint32_t body_bytes = number(path), answer_bytes = number(path);
      Body body;
      body.tail = take(body_bytes, path);
      body.answer = take(answer_bytes, path);
      body.head = body_head(form_, body_bytes);
      bodies_.push_back(std::move(body));
    }
    if (bodies_.empty() || !left_.empty()) throw std::runtime_error(path + " is not as long as its head says");
  }

  void write(uint64_t number, std::string& head, std::string_view& tail) const override {
    const Body& body = bodies_[number % bodies_.size()];
    head = body.head.bytes;
    write_id(number, head.data() + body.head.id_at);
    tail = body.tail;
  }

  Verdict judge(uint64_t number, std::string_view framed) override {
    if (!read_answer(framed, answer_) || answer_.outputs == 0) return Verdict::malformed;
    if (answer_.raw.size() != static_cast<size_t>(answer_.outputs)) return Verdict::malformed;
    char id[id_bytes];
    write_id(number, id);
    if (answer_.id != std::string_view(id, id_bytes)) return Verdict::id;
    if (answer_.model != form_.model || (!form_.version.empty() && answer_.version != form_.version)) return Verdict::model;
    const std::string_view wanted = bodies_[number % bodies_.size()].answer;
    if (wanted.empty()) {
      ++uncompared_;
      return Verdict::right;
    }
    got_.clear();
    for (const std::string_view each : answer_.raw) got_.append(each);
    if (got_.size() != wanted.size()) return Verdict::shape;
    if (!answer_.all_fp32) return got_ == wanted ? Verdict::right : Verdict::values;
    return nearness_.near(wanted, got_) ? Verdict::right : Verdict::values;
  }

  const Nearness& nearness() const override { return nearness_; }
  uint64_t uncompared() const override { return uncompared_; }

 private:
  struct Body {
    RequestHead head;
    std::string_view tail, answer;
  };

  std::string_view take(size_t length, const std::string& path) {
    if (length > left_.size()) throw std::runtime_error(path + " is not as long as its head says");
    const std::string_view taken = left_.substr(0, length);
    left_.remove_prefix(length);
    return taken;
  }

  uint32_t number(const std::string& path) {
    uint32_t value;
    std::memcpy(&value, take(sizeof value, path).data(), sizeof value);
    return value;
  }

  RequestForm form_;
  std::string bytes_, got_;
  std::string_view left_;
  std::vector<Body> bodies_;
  Nearness nearness_;
  Answer answer_;
  uint64_t uncompared_ = 0;
};

}  // namespace

std::unique_ptr<Payload> body_payload(RequestForm form, const std::string& path, double tolerance) {
  return std::make_unique<Bodies>(std::move(form), path, tolerance);
}

}  // namespace podium::client
