#include "options.h"

#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <map>
#include <stdexcept>

namespace podium::client {

const char* const usage =
    "podium_client --target HOST:PORT|unix:PATH --model NAME (--seconds S | --requests N) [OPTION VALUE]...\n"
    "Sends ModelInfer calls, verifies every answer, prints one JSON line.\n"
    "  --bytes N                    payload of an identity model: the answer must equal it (64)\n"
    "  --expected FILE              rows and their answers instead; --tolerance is absolute (1e-5)\n"
    "  --bodies FILE                whole messages, one after the other, and their answers where these are known\n"
    "  --model-version V  --input NAME (IN)  --output NAME (OUT)\n"
    "  --path PATH                  of the call (/inference.GRPCInferenceService/ModelInfer)\n"
    "  --contents raw|typed         where the tensor stands in the request (raw)\n"
    "  --connections C (1)  --streams M (1): calls in flight on each\n"
    "  --rate R                     open loop: R Poisson arrivals a second; latency counts from when a request was due\n"
    "  --cv C                       how much gaps deviate, over their mean: 1 is Poisson, more comes in bursts (1)\n"
    "  --settle-s S                 before the measured time; nothing of it is counted but wrong answers (0)\n"
    "  --deadline-ms D              right answers after it are counted as late, and not in the rate\n"
    "  --deadline-as WORD           how the server learns of it: grpc-timeout, or parameter (grpc-timeout)\n"
    "  --requests-per-connection N  then close it in good order and open another\n"
    "  --stall-s S                  give up when nothing came for so long (10)\n"
    "  --seed N (0)\n";

namespace {

uint64_t whole(const std::string& name, const std::string& text) {
  char* end = nullptr;
  errno = 0;
  const unsigned long long value = std::strtoull(text.c_str(), &end, 10);
  if (text.empty() || text[0] < '0' || text[0] > '9' || *end || errno) {
    throw std::runtime_error(name + ": no whole number: " + text);
  }
  return value;
}

double positive(const std::string& name, const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || !std::isfinite(value) || value <= 0) throw std::runtime_error(name + ": not above zero: " + text);
  return value;
}

void check(const Options& options) {
  if (options.target.empty() || options.model.empty()) throw std::runtime_error("--target and --model are needed");
  if (options.seconds == 0.0 && options.requests == 0) throw std::runtime_error("--seconds or --requests must end the run");
  if (options.connections == 0 || options.connections > 1000000) throw std::runtime_error("--connections: 1 to 1000000");
  if (options.streams == 0 || options.streams > 100000) throw std::runtime_error("--streams: 1 to 100000");
  if (options.bytes > (uint64_t{1} << 30)) throw std::runtime_error("--bytes: 1 GiB at most");
  // eight digits are what grpc-timeout has, and nanoseconds must hold the others
  if (options.cv < 0.01 || options.cv > 100) throw std::runtime_error("--cv: 0.01 to 100");
  if (!options.bodies.empty() && !options.expected.empty()) throw std::runtime_error("--bodies or --expected, not both");
  if (options.seconds > 1e6 || options.settle_s > 1e6 || options.stall_s > 1e6 || options.deadline_ms > 1e7) {
    throw std::runtime_error("a time is too long");
  }
}

}  // namespace

Options parse_options(int count, char** words) {
  Options options;
  const std::map<std::string, std::string*> texts = {{"--target", &options.target},         {"--model", &options.model},
                                                     {"--model-version", &options.version}, {"--input", &options.input},
                                                     {"--output", &options.output},         {"--expected", &options.expected},
                                                     {"--bodies", &options.bodies},         {"--path", &options.path}};
  const std::map<std::string, uint64_t*> wholes = {
      {"--bytes", &options.bytes},     {"--connections", &options.connections},
      {"--streams", &options.streams}, {"--requests", &options.requests},
      {"--seed", &options.seed},       {"--requests-per-connection", &options.requests_per_connection}};
  const std::map<std::string, double*> reals = {{"--rate", &options.rate_per_s},         {"--seconds", &options.seconds},
                                                {"--deadline-ms", &options.deadline_ms}, {"--stall-s", &options.stall_s},
                                                {"--settle-s", &options.settle_s},       {"--cv", &options.cv},
                                                {"--tolerance", &options.tolerance}};
  for (int place = 1; place < count; place += 2) {
    const std::string name = words[place];
    if (place + 1 == count) throw std::runtime_error(name + " needs a value");
    const std::string value = words[place + 1];
    if (const auto text = texts.find(name); text != texts.end()) {
      *text->second = value;
    } else if (const auto number = wholes.find(name); number != wholes.end()) {
      *number->second = whole(name, value);
    } else if (const auto real = reals.find(name); real != reals.end()) {
      *real->second = positive(name, value);
    } else if (name == "--contents" && (value == "raw" || value == "typed")) {
      options.typed = value == "typed";
    } else if (name == "--deadline-as" && (value == "grpc-timeout" || value == "parameter")) {
      options.timeout_parameter = value == "parameter";
    } else {
      throw std::runtime_error("not an option, or not a value of it: " + name + " " + value);
    }
  }
  check(options);
  return options;
}

}  // namespace podium::client
