// Tests that name themselves, and checks that say what they saw. A test ends at its first failed check.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace podium::units {

struct Test {
  const char* name;
  void (*run)();
};

std::vector<Test>& tests();

struct Registered {
  Registered(const char* name, void (*run)()) { tests().push_back(Test{name, run}); }
};

struct Failed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check(bool held, const char* file, int line, const std::string& what) {
  if (!held) throw Failed(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

template <typename A, typename B>
void check_equal(const A& found, const B& wanted, const char* file, int line, const char* what) {
  if (found == wanted) return;
  std::ostringstream text;
  text << what << " is '" << found << "', not '" << wanted << "'";
  check(false, file, line, text.str());
}

}  // namespace podium::units

#define TEST(name)                                                       \
  static void name();                                                    \
  static const podium::units::Registered registered_##name(#name, name); \
  static void name()
#define CHECK(...) podium::units::check((__VA_ARGS__), __FILE__, __LINE__, #__VA_ARGS__)
#define CHECK_EQUAL(found, wanted) podium::units::check_equal((found), (wanted), __FILE__, __LINE__, #found)
