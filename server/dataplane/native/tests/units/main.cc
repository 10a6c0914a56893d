#include <cstdio>
#include <cstring>
#include <exception>

#include "check.h"

namespace podium::units {

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

}  // namespace podium::units

// Every test, or those whose name holds the argument. Exit: 0 when there was one and all held.
int main(int count, char** arguments) {
  const char* part = count > 1 ? arguments[1] : "";
  int run = 0, failed = 0;
  for (const podium::units::Test& test : podium::units::tests()) {
    if (!std::strstr(test.name, part)) continue;
    ++run;
    try {
      test.run();
    } catch (const std::exception& error) {
      ++failed;
      std::printf("%s: %s\n", test.name, error.what());
    }
  }
  std::printf("%d tests, %d failed\n", run, failed);
  return run && !failed ? 0 : 1;
}
