// The interpreter's lock where a thread may meet the interpreter's end. Such a thread is ended by force (before Python 3.14), and
// on its way out it must not come past what is noexcept, nor past nanobind's own catching of everything: both abort the process.
#pragma once

#include <Python.h>
#include <cxxabi.h>
#include <unistd.h>

namespace podium {

// While it lives, other threads of Python run. A daemon thread that comes back after the interpreter's end stops here for good.
class WithoutInterpreter {
 public:
  WithoutInterpreter() : state_(PyEval_SaveThread()) {}
  WithoutInterpreter(const WithoutInterpreter&) = delete;
  WithoutInterpreter& operator=(const WithoutInterpreter&) = delete;
  ~WithoutInterpreter() {
    try {
      PyEval_RestoreThread(state_);
    } catch (abi::__forced_unwind&) {
      while (true) pause();
    }
  }

 private:
  PyThreadState* state_;
};

// Whether the interpreter is at its end: who asks for its lock now is ended. Any thread.
inline bool interpreter_ends() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing();
#else
  return _Py_IsFinalizing();
#endif
}

}  // namespace podium
