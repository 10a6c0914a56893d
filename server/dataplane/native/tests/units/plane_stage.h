// A plane and its door without sockets, and requests to the one version that it serves.
#pragma once

#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "calls.h"
#include "door.h"
#include "fake_calls.h"
#include "infer_response.h"
#include "plane.h"

namespace podium::units {

constexpr int width = 2;
constexpr int64_t hour_ns = 3600 * ns_per_s;

inline void put_field(std::string& target, int field, const std::string& content) {
  target += static_cast<char>(field << 3 | 2);
  target += static_cast<char>(content.size());
  target += content;
}

inline std::string bytes_of(const std::vector<int64_t>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof numbers[0]};
}

// A ModelInferRequest to "m" with the input X, INT64 [rows, 2]; shorter than 128 bytes in each field.
inline Rope request_of(const std::vector<int64_t>& numbers) {
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

inline std::shared_ptr<const Route> route_of(uint64_t queue_id) {
  Route route{};
  route.entrance = queue_id;
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
    plane.open("cpu", rules, id);
    auto routes = std::make_shared<Routes>();
    routes->add("m", "", route_of(id));
    plane.publish(std::move(routes));
    queue_id = id;
  }
};

// A call that has come whole, and has been submitted.
inline Ref<FakeStream> call(Stage& stage, size_t rows, int64_t patience) {
  FakeLoop& loop = *stage.loops[0];
  Ref<FakeStream> stream = Ref<FakeStream>::take(new FakeStream(loop, std::vector<int64_t>(rows * width, 1)));
  stream->path = "/inference.GRPCInferenceService/ModelInfer";
  stream->arrival_ns = now_ns();
  stream->deadline_ns = stream->arrival_ns + patience;
  stage.door->started(*stream);
  stage.door->message(*stream, request_of(stream->sent));
  stage.door->half_closed(*stream);
  stage.door->round_ended(loop);
  return stream;
}

}  // namespace podium::units
