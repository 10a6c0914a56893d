// Timers of one loop: a heap in which each timer knows its place, so that most are taken out again before they are due.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "clock.h"

namespace podium {

// Owned by whoever has it as a member; must be cancelled before it dies. Its loop's thread only.
class Timer {
 public:
  virtual ~Timer() = default;
  virtual void fire(int64_t now) = 0;
  bool armed() const { return place_ != nowhere; }
  int64_t due_ns() const { return armed() ? due_ns_ : no_deadline_ns; }

 private:
  friend class Timers;
  static constexpr size_t nowhere = ~size_t{0};
  size_t place_ = nowhere;
  int64_t due_ns_ = no_deadline_ns;
};

template <typename Owner>
class MemberTimer final : public Timer {
 public:
  using Method = void (Owner::*)(int64_t now);
  MemberTimer(Owner& owner, Method method) : owner_(owner), method_(method) {}
  void fire(int64_t now) override { (owner_.*method_)(now); }

 private:
  Owner& owner_;
  Method method_;
};

class Timers {
 public:
  // Arms it, or moves it.
  void set(Timer& timer, int64_t due_ns) {
    if (!timer.armed()) {
      heap_.push_back(&timer);
      timer.place_ = heap_.size() - 1;
    }
    timer.due_ns_ = due_ns;
    sift(timer.place_);
  }

  void cancel(Timer& timer) {
    if (!timer.armed()) return;
    size_t place = timer.place_;
    timer.place_ = Timer::nowhere;
    Timer* last = heap_.back();
    heap_.pop_back();
    if (last == &timer) return;
    heap_[place] = last;
    last->place_ = place;
    sift(place);
  }

  int64_t next_due_ns() const { return heap_.empty() ? no_deadline_ns : heap_.front()->due_ns_; }

  // Fires what is due; what a timer arms anew for `now` or before waits for the next time.
  void fire(int64_t now) {
    for (size_t left = heap_.size(); left && !heap_.empty() && heap_.front()->due_ns_ <= now; --left) {
      Timer& timer = *heap_.front();
      cancel(timer);
      timer.fire(now);
    }
  }

 private:
  void put(size_t place, Timer* timer) {
    heap_[place] = timer;
    timer->place_ = place;
  }

  void sift(size_t place) {
    Timer* timer = heap_[place];
    while (place) {
      size_t parent = (place - 1) / 2;
      if (heap_[parent]->due_ns_ <= timer->due_ns_) break;
      put(place, heap_[parent]);
      place = parent;
    }
    for (;;) {
      size_t child = 2 * place + 1;
      if (child >= heap_.size()) break;
      if (child + 1 < heap_.size() && heap_[child + 1]->due_ns_ < heap_[child]->due_ns_) ++child;
      if (timer->due_ns_ <= heap_[child]->due_ns_) break;
      put(place, heap_[child]);
      place = child;
    }
    put(place, timer);
  }

  std::vector<Timer*> heap_;
};

}  // namespace podium
