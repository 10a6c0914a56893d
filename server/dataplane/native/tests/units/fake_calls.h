// Calls without sockets: loops and streams that keep account of how each call ended.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "http2.h"

namespace podium::units {

// Ownership: the loop's thread, but for `alive`. Whoever makes it tells the door of it.
class FakeStream final : public Stream {
 public:
  static inline std::atomic<int> alive{0};

  FakeStream(Loop& loop, std::vector<int64_t> rows) : sent(std::move(rows)), loop_(loop) { ++alive; }
  ~FakeStream() override { --alive; }

  const std::string& peer() const override { return nobody_; }
  const Metadata& auth() const override { return nothing_; }
  Loop& loop() override { return loop_; }
  bool open() const override { return !gone && !ends; }
  void send(Bytes message) override {
    if (open()) received = std::move(message);
  }
  void finish(Code code, std::string_view, const Metadata&) override {
    if (gone) return;  // an answer that was on its way when its caller left
    ++ends;
    ended = code;
  }
  void read(bool) override {}
  size_t unsent_bytes() const override { return 0; }
  void watch_deadline() override {}

  const std::vector<int64_t> sent;
  Bytes received;
  int ends = 0;
  bool gone = false;
  Code ended = Code::ok;

 private:
  Loop& loop_;
  const std::string nobody_;
  const Metadata nothing_;
};

// Its owner calls `run_posted` on the thread that it takes for the loop's.
class FakeLoop final : public Loop {
 public:
  explicit FakeLoop(int index) : index_(index) {}

  int index() const override { return index_; }
  void post(std::vector<Command>&& commands, std::function<void()> written) override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (Command& command : commands) commands_.push_back(std::move(command));
    if (written) functions_.push_back(std::move(written));
  }
  void call(std::function<void()> function) override {
    std::lock_guard<std::mutex> lock(mutex_);
    functions_.push_back(std::move(function));
  }

  void run_posted() {
    std::vector<Command> commands;
    std::vector<std::function<void()>> functions;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      commands.swap(commands_);
      functions.swap(functions_);
    }
    for (Command& command : commands) {
      if (command.message.size) command.stream->send(std::move(command.message));
      if (command.ends) command.stream->finish(command.code, command.text, command.trailing);
    }
    for (auto& function : functions) function();
  }

 private:
  const int index_;
  std::mutex mutex_;
  std::vector<Command> commands_;
  std::vector<std::function<void()>> functions_;
};

}  // namespace podium::units
