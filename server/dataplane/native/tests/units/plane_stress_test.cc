// Everything at once that a plane is for, and the law: whatever was admitted ends exactly once, and nothing is kept.
#include <chrono>
#include <deque>
#include <memory>
#include <random>
#include <thread>

#include "check.h"
#include "plane_stage.h"

namespace podium::units {
namespace {

int64_t some_deadline(std::minstd_rand& random, int64_t now) {
  switch (random() % 4) {
    case 0:
      return no_deadline_ns;
    case 1:
      return now + hour_ns;  // what is cancelled must not be kept until then
    default:
      return now + static_cast<int64_t>(random() % 2000) * ns_per_us;
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
    // by turns: what was admitted still runs, or ends at once
    if (id % 2) {
      stage.plane.close(id - 1);
    } else {
      stage.plane.fail(id - 1, Ending{Code::unavailable, "its device is lost", {}});
    }
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

}  // namespace podium::units
