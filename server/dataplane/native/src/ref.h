// Counted references: what several threads hold, and the last one frees.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>

namespace podium {

// Base of everything that is held by `Ref`. A fresh object has one reference, which `Ref::take` adopts.
class Counted {
 public:
  Counted() = default;
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;
  virtual ~Counted() = default;

  void hold() { holders_.fetch_add(1, std::memory_order_relaxed); }
  void release() {
    if (holders_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }
  // Whether the caller's is the only reference. Nobody else can make another one then.
  bool alone() const { return holders_.load(std::memory_order_acquire) == 1; }

 private:
  std::atomic<uint32_t> holders_{1};
};

template <typename T>
class Ref {
 public:
  Ref() = default;
  Ref(const Ref& other) : object_(other.object_) {
    if (object_) object_->hold();
  }
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  explicit Ref(T& object) : object_(&object) { object_->hold(); }
  ~Ref() {
    if (object_) object_->release();
  }
  Ref& operator=(Ref other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  // Adopts the reference that a fresh object was born with.
  static Ref take(T* fresh) {
    Ref made;
    made.object_ = fresh;
    return made;
  }
  // Hands the reference to the caller, who gives it to `take` again.
  T* detach() { return std::exchange(object_, nullptr); }
  T* get() const { return object_; }
  T* operator->() const { return object_; }
  T& operator*() const { return *object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  T* object_ = nullptr;
};

}  // namespace podium
