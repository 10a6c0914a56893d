// podium_client: see `usage`. Exit status 0 when the run took place, whatever came of it (the JSON line says that); 2 if not.
#include <sys/resource.h>

#include <cstdio>
#include <exception>

#include "load.h"

namespace {

// One connection is one descriptor: as many as this user may have.
void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
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
    auto values = options.expected.empty() ? identity_values(options.bytes, options.seed)
                                           : expected_values(options.expected, options.tolerance);
    Payload payload({options.model, options.version, options.input, 0, options.typed}, options.output, std::move(values));
    Load load(options, payload);
    const Report report = load.run();
    std::printf("%s\n", report.json(payload.values()).c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "podium_client: %s\n", error.what());
    return 2;
  }
  return 0;
}
