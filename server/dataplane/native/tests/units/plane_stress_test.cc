// Everything at once that a plane is for, and the law: whatever was admitted ends exactly once, and nothing is kept.
#include <chrono>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <thread>

#include "calls.h"
#include "check.h"
#include "door.h"
#include "fake_calls.h"
#include "infer_response.h"
#include "plane.h"

namespace podium {
namespace {

using units::FakeLoop;
using units::FakeStream;

constexpr int width = 2;
constexpr int64_t hour_ns = 3600 * ns_per_s;

void put_field(std::string& target, int field, const std::string& content) {
  target += static_cast<char>(field << 3 | 2);
  target += static_cast<char>(content.size());
  target += content;
}

std::string bytes_of(const std::vector<int64_t>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof numbers[0]};
}

// A ModelInferRequest to "m" with the input X, INT64 [rows, 2]; shorter than 128 bytes in each field.
Rope request_of(const std::vector<int64_t>& numbers) {
  std::string tensor, message;
  put_field(tensor, 1, "X");
  put_field(tensor, 2, "INT64");
  put_field(tensor, 3, {static_cast<char>(numbers.size() / width), static_cast<char>(width)});
  put_field(message, 1, "m");
  put_field(message, 5, tensor);
  put_field(message, 7, bytes_of(numbers));
  Ref<Slab> slab = Slab::make(message.size());
  std::memcpy(slab->data(), message.data(), message.size());
  Rope rope;
  rope.append(slab, slab->data(), message.size());
  return rope;
}

std::shared_ptr<const Route> route_of(uint64_t queue_id) {
  Route route{};
  route.queue_id = queue_id;
  route.model = "m";
  route.version = "1";
  route.inputs = {TensorSpec{"X", Datatype::INT64, {-1}, false}};
  route.outputs = {TensorSpec{"Y", Datatype::INT64, {-1}, false}};
  route.max_batch = 4;
  route.masks = {1};
  route.allow_timeout_override = true;
  route.priority_levels = 1;
  route.answer = response_template(route);
  return std::make_shared<const Route>(std::move(route));
}

struct Stage {
  Plane plane{200, 1 << 20, false};
  Calls calls;
  std::vector<std::unique_ptr<FakeLoop>> loops;
  std::unique_ptr<Door> door;
  std::atomic<bool> over{false};
  std::atomic<uint64_t> queue_id{0};
  // of Python's tickets, by their numbers: how often each has ended
  std::vector<std::atomic<int>> ends = std::vector<std::atomic<int>>(100'000);
  std::atomic<uint64_t> numbers{0}, executed{0}, doubled{0}, unanswered{0}, wrong{0}, callers{0};

  Stage() {
    for (int index = 0; index < 2; ++index) loops.push_back(std::make_unique<FakeLoop>(index));
    door = make_door(plane, calls, 2, false);
    plane.set_fast(true);
    plane.on_ended([this](const std::vector<std::pair<uint64_t, bool>>& tickets, Ended) {
      for (const auto& ticket : tickets) ++ends[ticket.first];
    });
  }

  void open(uint64_t id) {
    Rules rules;
    rules.queue_id = id;
    rules.buckets = {1, 2, 4};
    rules.costs_ns = {0, 0, 0};
    rules.max_batch = 4;
    rules.max_requests = 100;
    rules.queue_delay_ns = id % 2 ? 0 : 100 * ns_per_us;
    rules.early_drop = id % 3 == 0;
    rules.instances = 2;
    plane.threads_for("cpu", 2, 2);
    plane.open("cpu", rules);
    auto routes = std::make_shared<Routes>();
    routes->add("m", "", route_of(id));
    plane.publish(std::move(routes));
    queue_id = id;
  }
};

int64_t some_deadline(std::minstd_rand& random, int64_t now) {
  switch (random() % 4) {
    case 0: return no_deadline_ns;
    case 1: return now + hour_ns;  // what is cancelled must not be kept until then
    default: return now + static_cast<int64_t>(random() % 2000) * ns_per_us;
  }
}

// What an IO thread does: calls begin, are told to the door, are answered, or left by their callers at any time.
void serve_calls(Stage& stage, FakeLoop& loop, unsigned seed) {
  std::minstd_rand random(seed);
  std::deque<Ref<FakeStream>> open;
  auto settle = [&](bool all) {
    for (size_t left = open.size(); left; --left) {
      Ref<FakeStream> stream = std::move(open.front());
      open.pop_front();
      if (!stream->ends && !stream->gone && !all && random() % 50 == 0) {
        stream->gone = true;
        stage.door->gone(*stream);
      }
      if (!stream->ends && !stream->gone) {
        if (all) ++stage.unanswered;
        if (!all) open.push_back(std::move(stream));
        continue;
      }
      stage.doubled += stream->ends > 1;
      if (!stream->received.size) continue;
      std::string text(reinterpret_cast<const char*>(stream->received.data.get()), stream->received.size);
      std::string wanted = bytes_of(stream->sent);
      stage.wrong += text.size() < wanted.size() || text.compare(text.size() - wanted.size(), wanted.size(), wanted) != 0;
    }
  };
  int64_t number = seed;
  auto turn = [&](size_t fresh) {
    loop.run_posted();
    for (size_t each = 0; each < fresh; ++each) {
      std::vector<int64_t> rows(width * (1 + random() % 3), ++number);
      Ref<FakeStream> stream = Ref<FakeStream>::take(new FakeStream(loop, rows));
      ++stage.callers;
      stream->path = "/inference.GRPCInferenceService/ModelInfer";
      stream->arrival_ns = now_ns();
      stream->deadline_ns = some_deadline(random, stream->arrival_ns);
      stage.door->started(*stream);
      stage.door->message(*stream, request_of(rows));
      stage.door->half_closed(*stream);
      open.push_back(std::move(stream));
    }
    settle(false);
    stage.door->round_ended(loop);
  };
  while (!stage.over) {
    turn(random() % 4);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 1000));
  }
  for (int rounds = 0; rounds < 10'000 && !open.empty(); ++rounds) {
    turn(0);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  settle(true);
}

// What Python's door does with the same queue.
void submit_decoded(Stage& stage) {
  std::minstd_rand random(7);
  const std::vector<int64_t> dims{width};
  while (!stage.over && stage.numbers + 1 < stage.ends.size()) {
    uint64_t number = ++stage.numbers;
    Ref<Ticket> ticket = Ref<Ticket>::take(new PythonTicket(number));
    ticket->queue_id = stage.queue_id;
    ticket->shape = shape_of(1, {&dims});
    ticket->nbytes = 16;
    int64_t now = now_ns();
    ticket->set_deadline(now, some_deadline(random, now));
    if (stage.plane.submit(ticket, random() % 2).outcome != Outcome::admitted) {
      ++stage.ends[number];
    } else if (random() % 3 == 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 500));
      if (stage.plane.cancel(*ticket).first != State::ended) ++stage.ends[number];
    }
    stage.plane.wake();
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));
  }
}

void execute(Stage& stage, unsigned seed) {
  std::minstd_rand random(seed);
  while (std::unique_ptr<Taken> taken = stage.plane.take("cpu")) {
    std::vector<int64_t> rows(static_cast<size_t>(taken->rows) * width);
    size_t first = 0, count = taken->tickets.size();
    for (const Ref<Ticket>& ticket : taken->tickets) {
      if (ticket->native) {
        const PlainRequest& request = static_cast<NativeTicket&>(*ticket).request;
        request.message.copy(request.inputs[0].mark, request.inputs[0].size, reinterpret_cast<uint8_t*>(&rows[first * width]));
      }
      first += ticket->rows;
    }
    Execution execution{stage.plane.enter_device(*taken), 0, 0, taken->rows};
    if (random() % 4) std::this_thread::sleep_for(std::chrono::microseconds(random() % 500));
    execution.ran_ns = now_ns();
    if (random() % 2) stage.plane.leave_device(*taken);
    PartResult part{0, count, random() % 8 != 0, {}, Ending{Code::internal, "failed", {}}};
    PartOutput output{true, reinterpret_cast<uint8_t*>(rows.data()), rows.size() * 8, {taken->rows, width}, width * 8, {}};
    if (part.executed) part.outputs.push_back(output);
    std::vector<uint8_t> answered;
    stage.plane.finish(*taken, {part}, execution, part.executed ? taken->rows : 0, 1000, answered);
    for (size_t index = 0; index < count; ++index) {
      if (taken->tickets[index]->native || !answered[index]) continue;
      ++stage.ends[static_cast<PythonTicket&>(*taken->tickets[index]).python_number];
    }
    stage.executed += count;
  }
}

// What Python's handlers would be: they answer whatever comes to them.
void answer_slowly(Stage& stage, const std::atomic<bool>& done) {
  while (!done) {
    for (CallEvent& event : stage.calls.take()) {
      if (event.kind != Event::half_closed) continue;
      stage.calls.forget(*event.stream);
      Ref<Stream> stream = std::move(event.stream);
      stream->loop().call([stream] { stream->finish(Code::unavailable, "", {}); });
    }
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
}

}  // namespace

TEST(a_call_that_is_left_while_it_waits_is_not_kept_until_its_deadline) {
  Stage stage;
  stage.open(1);
  FakeLoop& loop = *stage.loops[0];
  Ref<FakeStream> stream = Ref<FakeStream>::take(new FakeStream(loop, {1, 2}));
  stream->path = "/inference.GRPCInferenceService/ModelInfer";
  stream->arrival_ns = now_ns();
  stream->deadline_ns = stream->arrival_ns + hour_ns;
  stage.door->started(*stream);
  stage.door->message(*stream, request_of(stream->sent));
  stage.door->half_closed(*stream);
  stage.door->round_ended(loop);
  CHECK_EQUAL(stage.plane.snapshot(1)->waiting, 1u);
  stage.door->gone(*stream);
  CHECK_EQUAL(stage.plane.snapshot(1)->open, 0u);
  CHECK(stream->alone());
}

TEST(consumers_that_name_themselves_anew_are_counted_as_others) {
  Stage stage;
  stage.open(1);
  std::vector<Entered> outcomes;
  uint64_t count = 0;
  for (size_t each = 0; each < most_consumers + 10; ++each) {
    Ref<NativeTicket> ticket = Ref<NativeTicket>::take(new NativeTicket);
    ticket->queue_id = 1;
    ticket->set_deadline(0, 1);  // it has passed: refused, and counted as use
    stage.plane.submit_all({ticket}, {std::to_string(each)}, outcomes);
  }
  Uses uses = stage.plane.take_uses()[1];
  for (const auto& [consumer, requests] : uses) count += requests;
  CHECK_EQUAL(count, most_consumers + 10);
  CHECK_EQUAL(uses.size(), most_consumers + 1);
  CHECK_EQUAL(uses[other_consumers], 10u);
}

TEST(what_is_admitted_ends_once_and_nothing_is_kept) {
  Stage stage;
  stage.open(1);
  std::atomic<bool> done{false};
  std::thread slow([&] { answer_slowly(stage, done); });
  std::vector<std::thread> engines, doors;
  for (unsigned seed = 0; seed < 3; ++seed) engines.emplace_back([&stage, seed] { execute(stage, seed); });
  for (auto& loop : stage.loops) {
    doors.emplace_back([&stage, &loop = *loop] { serve_calls(stage, loop, 1000 * (1 + static_cast<unsigned>(loop.index()))); });
  }
  doors.emplace_back([&stage] { submit_decoded(stage); });
  bool idle = true;
  for (uint64_t id = 2; id < 60; ++id) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    stage.open(id);
    stage.plane.close(id - 1);
    idle = stage.plane.wait_idle(id - 1, 10) && idle;
    stage.plane.take_uses();
    stage.plane.take_refusals();
  }
  stage.over = true;
  for (std::thread& each : doors) each.join();
  done = true;
  slow.join();
  stage.plane.close(59);
  idle = stage.plane.wait_idle(59, 10) && idle;
  stage.plane.stop();
  for (std::thread& each : engines) each.join();
  for (auto& loop : stage.loops) loop->run_posted();
  stage.calls.take();
  int kept = FakeStream::alive;

  CHECK(idle);
  CHECK_EQUAL(stage.doubled.load(), 0u);
  CHECK_EQUAL(stage.unanswered.load(), 0u);
  CHECK_EQUAL(stage.wrong.load(), 0u);
  for (uint64_t number = 1; number <= stage.numbers; ++number) CHECK_EQUAL(stage.ends[number].load(), 1);
  CHECK_EQUAL(kept, 0);
  CHECK(stage.executed > 500 && stage.callers > 1000);
}

}  // namespace podium
