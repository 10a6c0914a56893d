// Memory of a Python object, for as long as this lives. The interpreter must be held where it is made and ended.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <utility>

namespace podium {

class Buffer {
 public:
  // Row-major memory. Throws the interpreter's error where the object has none.
  Buffer(nanobind::handle object, bool writable) {
    int flags = PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object.ptr(), &view_, flags)) throw nanobind::python_error();
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer(Buffer&& other) noexcept : view_(std::exchange(other.view_, Py_buffer{})) {}
  ~Buffer() {
    if (view_.obj) PyBuffer_Release(&view_);
  }

  uint8_t* data() const { return static_cast<uint8_t*>(view_.buf); }
  size_t size() const { return static_cast<size_t>(view_.len); }
  const Py_buffer& view() const { return view_; }

 private:
  Py_buffer view_{};
};

}  // namespace podium
