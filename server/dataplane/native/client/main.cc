// podium_client: see `usage`. Exit status 0 when the run took place, whatever came of it (the JSON line says that); 2 if not.
#include <sys/resource.h>

#include <cmath>
#include <cstdio>
#include <exception>

#include "bodies.h"
#include "load.h"

namespace {

// One connection is one descriptor: as many as this user may have.
void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

std::unique_ptr<podium::client::Payload> payload_of(const podium::client::Options& options) {
  using namespace podium::client;
  RequestForm form{options.model, options.version, options.input, 0, options.typed, 0};
  if (options.timeout_parameter) form.timeout_us = static_cast<uint64_t>(std::llround(options.deadline_ms * 1e3));
  if (!options.bodies.empty()) return body_payload(std::move(form), options.bodies, options.tolerance);
  auto values = options.expected.empty() ? identity_values(options.bytes, options.seed)
                                         : expected_values(options.expected, options.tolerance);
  return std::make_unique<RowPayload>(std::move(form), options.output, std::move(values));
}

}  // namespace

int main(int count, char** words) {
  using namespace podium::client;
  if (count == 1) {
    std::fputs(usage, stderr);
    return 2;
  }
  try {
    const Options options = parse_options(count, words);
    raise_descriptor_limit();
    const auto payload = payload_of(options);
    Load load(options, *payload);
    const Report report = load.run();
    std::printf("%s\n", report.json(*payload).c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "podium_client: %s\n", error.what());
    return 2;
  }
  return 0;
}
