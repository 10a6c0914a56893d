#include "report.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdio>

#include "clock.h"

namespace podium::client {

namespace {

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char each : text) {
    const auto byte = static_cast<uint8_t>(each);
    if (each == '"' || each == '\\') {
      out += {'\\', each};
    } else if (byte >= 0x20 && byte < 0x7f) {
      out += each;
    } else {
      char code[8];
      std::snprintf(code, sizeof code, "\\u%04x", byte);
      out += code;
    }
  }
  return out + "\"";
}

std::string distribution(const Histogram& histogram) {
  const auto us = [](uint64_t ns) { return number(static_cast<double>(ns) / 1e3); };
  return "{\"count\": " + std::to_string(histogram.count()) + ", \"mean\": " + number(histogram.mean_ns() / 1e3) +
         ", \"p50\": " + us(histogram.quantile_ns(0.5)) + ", \"p90\": " + us(histogram.quantile_ns(0.9)) +
         ", \"p99\": " + us(histogram.quantile_ns(0.99)) + ", \"p99.9\": " + us(histogram.quantile_ns(0.999)) +
         ", \"max\": " + us(histogram.largest_ns()) + "}";
}

}  // namespace

uint64_t Report::wrong_answers() const {
  uint64_t sum = 0;
  for (const uint64_t count : wrong) sum += count;
  return sum;
}

bool Report::is_void() const {
  constexpr double share = 0.05;  // of the reported p99
  const double most_ns = share * static_cast<double>(latency.quantile_ns(0.99));
  return static_cast<double>(lateness.quantile_ns(0.99)) > most_ns || static_cast<double>(behind_ns) > most_ns;
}

std::string Report::json(const Payload& payload) const {
  std::string out = "{";
  const auto add = [&](const char* name, const std::string& value) {
    if (out.size() > 1) out += ", ";
    out += "\"" + std::string(name) + "\": " + value;
  };
  std::string kinds, codes;
  for (int kind = 1; kind < verdicts; ++kind) {
    if (!wrong[kind]) continue;
    kinds += (kinds.empty() ? "" : ", ") + quoted(word_of(Verdict(kind))) + ": " + std::to_string(wrong[kind]);
  }
  uint64_t failed = 0;
  for (const auto& [code, count] : errors) {
    codes += (codes.empty() ? "" : ", ") + quoted(code) + ": " + std::to_string(count);
    failed += count;
  }
  const double seconds = static_cast<double>(std::max<int64_t>(end_ns - start_ns, 1)) / 1e9;
  add("requests", std::to_string(sent));
  add("right", std::to_string(right));
  add("late", std::to_string(late));
  add("wrong", std::to_string(wrong_answers()));
  add("wrong_by", "{" + kinds + "}");
  add("failed", std::to_string(failed));
  add("errors", "{" + codes + "}");
  add("first_error", quoted(first_error));
  add("unanswered", std::to_string(unanswered));
  add("inexact", std::to_string(payload.nearness().inexact));
  add("largest_error", number(payload.nearness().largest_error));
  add("uncompared", std::to_string(payload.uncompared()));
  add("settling", std::to_string(settling));
  add("seconds", number(seconds));
  add("rate", number(static_cast<double>(right) / seconds));
  // in an open loop: of what was due in a second, how much was answered rightly and in time
  const double offered_s = static_cast<double>(std::max<int64_t>(offered_until_ns - start_ns, 1)) / 1e9;
  add("goodput", number(static_cast<double>(right) / offered_s));
  add("latency_us", distribution(latency));
  add("lateness_us", distribution(lateness));
  add("behind_us", number(static_cast<double>(behind_ns) / 1e3));
  add("void", is_void() ? "true" : "false");
  add("connects", std::to_string(connects));
  add("failed_connects", std::to_string(failed_connects));
  add("lost_connections", std::to_string(lost_connections));
  add("cpu_s", number(cpu_s));
  add("cpu_us_per_request", number(sent ? cpu_s * 1e6 / static_cast<double>(sent) : 0.0));
  return out + "}";
}

double own_cpu_s() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

}  // namespace podium::client
