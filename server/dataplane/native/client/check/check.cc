// Checks what a run with a server does not show: percentiles against sorted values, the arrivals' distribution, and that no
// answer, however it is cut or changed, is read beyond its end (built with sanitizers) or taken for right.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <random>

#include "bodies.h"
#include "histogram.h"
#include "message.h"
#include "pacing.h"
#include "payload.h"
#include "report.h"

namespace {

using namespace podium::client;

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::exit(1);
}

void check_histogram() {
  Histogram empty;
  require(empty.quantile_ns(0.99) == 0 && empty.count() == 0, "an empty histogram has no percentiles");
  std::mt19937_64 random(1);
  std::lognormal_distribution<double> spread(12.0, 4.0);
  Histogram histogram;
  std::vector<uint64_t> values;
  for (int count = 0; count < 100000; ++count) {
    values.push_back(static_cast<uint64_t>(spread(random)));
    histogram.record(static_cast<int64_t>(values.back()));
  }
  std::sort(values.begin(), values.end());
  require(histogram.count() == values.size() && histogram.largest_ns() == values.back(), "count and maximum are exact");
  for (const double share : {0.0001, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 1.0}) {
    const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(values.size())));
    const double exact = static_cast<double>(values[rank - 1]), said = static_cast<double>(histogram.quantile_ns(share));
    require(said >= exact && said <= exact * 1.008, "a percentile is at most 0.8 % above the sorted values', never below");
  }
  histogram.record(INT64_MAX);
  histogram.record(-5);
  require(histogram.largest_ns() == static_cast<uint64_t>(INT64_MAX), "the largest value has a bucket");
}

void check_pacer(double cv) {
  constexpr int count = 400000;
  Pacer pacer(1e6, 3, cv);
  pacer.start(1'000'000'000'000'000);
  double sum = 0, squares = 0;
  int64_t before = 1'000'000'000'000'000;
  for (int place = 0; place < count; ++place, pacer.advance()) {
    const auto gap = static_cast<double>(pacer.due_ns() - before);
    require(gap >= 0, "arrivals are in order");
    before = pacer.due_ns();
    sum += gap;
    squares += gap * gap;
  }
  const double mean = sum / count, deviation = std::sqrt(squares / count - mean * mean);
  // six standard errors of the mean; bursts have a heavy tail, and their deviation is known less well
  require(std::fabs(mean - 1000) < 10 * cv, "arrivals come at their rate");
  require(std::fabs(deviation / mean - cv) < 0.025 * cv, "gaps deviate as they were told to");
}

void check_void() {
  Report report;
  for (int count = 0; count < 1000; ++count) report.latency.record(1'000'000);
  require(!report.is_void(), "a closed loop is not late");
  for (int count = 0; count < 1000; ++count) report.lateness.record(count < 985 ? 1000 : 49'000);
  require(!report.is_void(), "a twentieth is borne");
  for (int count = 0; count < 20; ++count) report.lateness.record(60'000);
  require(report.is_void(), "more than a twentieth of the p99 is not");
  Report short_of_breath;
  short_of_breath.latency.record(1'000'000);
  require(!short_of_breath.is_void(), "nothing was late");
  short_of_breath.behind_ns = 60'000;
  require(short_of_breath.is_void(), "what was never sent was late too");
}

std::string answer_to(uint64_t number, const Values& values, size_t width) {
  char id[id_bytes], head[8];
  write_id(number, id);
  values.patch(number, head);
  const std::string shape = {1, static_cast<char>(width)};
  const std::string output =
      "\x0a\x03OUT\x12\x04"
      "FP32\x1a\x02" +
      shape;
  std::string message = "\x0a\x01m\x1a\x10" + std::string(id, id_bytes) + "\x2a" + static_cast<char>(output.size()) + output;
  message += "\x32" + std::string(1, static_cast<char>(width * 4)) + std::string(head, 8) + std::string(values.rest(number));
  return std::string("\0\0\0\0", 4) + static_cast<char>(message.size()) + message;
}

void check_answers() {
  constexpr size_t width = 8;
  const auto reference = identity_values(width * 4, 5);
  RowPayload payload({"m", "", "IN", 0, false, 0}, "OUT", identity_values(width * 4, 5));
  const std::string right = answer_to(77, *reference, width);
  require(payload.judge(77, right) == Verdict::right, "the right answer is right");
  require(payload.judge(78, right) == Verdict::id, "another request's is not");
  for (size_t length = 0; length < right.size(); ++length) {
    // a heap block of just this length, so that a sanitizer sees one byte too many
    const std::vector<char> cut(right.begin(), right.begin() + static_cast<std::ptrdiff_t>(length));
    require(payload.judge(77, {cut.data(), cut.size()}) != Verdict::right, "a cut answer is not right");
  }
  for (size_t bit = 0; bit < right.size() * 8; ++bit) {
    std::vector<char> changed(right.begin(), right.end());
    changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ (1 << bit % 8));
    require(payload.judge(77, {changed.data(), changed.size()}) != Verdict::right,
            "an answer with one bit changed is not right");
  }
  std::mt19937 random(9);
  for (int round = 0; round < 200000; ++round) {
    std::vector<char> noise(right.begin(), right.end());
    for (int change = 0; change < 4; ++change) noise[5 + random() % (noise.size() - 5)] = static_cast<char>(random());
    payload.judge(77, {noise.data(), noise.size()});
  }
}

// Bodies from a file whose every prefix is refused, and answers that are cut or changed.
void check_bodies() {
  constexpr size_t width = 8;
  const auto reference = identity_values(width * 4, 5);
  char head[8];
  reference->patch(77, head);
  const std::string answer = std::string(head, 8) + std::string(reference->rest(77));
  const std::string whole = std::string("PDBY\1\0\0\0\3\0\0\0\x20\0\0\0", 16) + "xyz" + answer;
  const std::string path = "podium_client_check." + std::to_string(getpid());
  const auto open = [&](const std::string& content) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
    return body_payload({"m", "", "IN", 0, false, 1500}, path, 1e-5);
  };
  for (size_t length = 0; length <= whole.size() + 1; ++length) {
    bool refused = false;
    try {
      open(length > whole.size() ? whole + "x" : whole.substr(0, length));
    } catch (const std::runtime_error&) {
      refused = true;
    }
    require(refused == (length != whole.size()), "a file is taken whole or not at all");
  }
  const auto payload = open(whole);
  std::remove(path.c_str());
  std::string sent;
  std::string_view tail;
  payload->write(77, sent, tail);
  require(tail == "xyz" && sent.find("timeout") != std::string::npos, "what is sent is the file's, with its deadline");
  const std::string right = answer_to(77, *reference, width);
  require(payload->judge(77, right) == Verdict::right && payload->uncompared() == 0, "the right answer is right");
  require(payload->judge(78, right) == Verdict::id, "another request's is not");
  for (size_t length = 0; length < right.size(); ++length) {
    const std::vector<char> cut(right.begin(), right.begin() + static_cast<std::ptrdiff_t>(length));
    require(payload->judge(77, {cut.data(), cut.size()}) != Verdict::right, "a cut answer is not right");
  }
  std::mt19937 random(9);
  for (int round = 0; round < 200000; ++round) {
    std::vector<char> noise(right.begin(), right.end());
    for (int change = 0; change < 4; ++change) noise[5 + random() % (noise.size() - 5)] = static_cast<char>(random());
    payload->judge(77, {noise.data(), noise.size()});
  }
}

}  // namespace

int main() {
  check_histogram();
  for (const double cv : {1.0, 2.0, 0.5}) check_pacer(cv);
  check_void();
  check_answers();
  check_bodies();
  return 0;
}
