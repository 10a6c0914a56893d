// The end of a batch: every ticket ended, its answer written and handed to its connection's loop. And the end of those that no
// batch answers.
#include <algorithm>
#include <map>
#include <new>
#include <utility>

#include "infer_response.h"
#include "plane.h"

namespace podium {
namespace {

constexpr size_t max_response_bytes = 0x7fffffff;

// What a request of a part is answered with. `origin` is the first row of the part.
struct Writer {
  const PartResult& part;
  const Execution& execution;
  bool batching;
  int64_t now;
  // reused from answer to answer
  std::vector<OutputData> outputs;
  std::vector<int64_t> dims;
  uint64_t tensor_bytes = 0, copied_bytes = 0;

  Command answer(NativeTicket& ticket, int64_t first_row);

 private:
  Command encoded(NativeTicket& ticket, int64_t first_row);
  bool select(uint16_t index, const NativeTicket& ticket, int64_t first_row);
  Timing timing(const NativeTicket& ticket) const;
};

Command failed(NativeTicket& ticket, const Ending& ending) {
  Command command;
  command.stream = std::move(ticket.stream);
  if (ticket.place >= 0) {
    command.answers = ticket.place;
    command.message = error_of(ticket, ending.text);
    return command;
  }
  command.code = ending.code;
  command.text = ending.text;
  command.trailing = ending.trailing;
  return command;
}

bool Writer::select(uint16_t index, const NativeTicket& ticket, int64_t first_row) {
  if (index >= part.outputs.size() || !part.outputs[index].there) return false;
  const PartOutput& output = part.outputs[index];
  // the engine has looked; here it would be other memory that leaves
  if (batching && (output.dims.empty() || output.dims[0] < first_row + ticket.rows)) return false;
  OutputData made{};
  made.output = index;
  made.dims_count = output.dims.size();  // dims: once all of them are in their place
  if (!batching) {
    made.data = output.data;
    made.size = output.size;
  } else if (output.offsets.empty()) {
    made.data = output.data + first_row * output.row_bytes;
    made.size = static_cast<size_t>(ticket.rows * output.row_bytes);
  } else {
    made.data = output.data + output.offsets[first_row];
    made.size = static_cast<size_t>(output.offsets[first_row + ticket.rows] - output.offsets[first_row]);
  }
  size_t at = dims.size();
  dims.insert(dims.end(), output.dims.begin(), output.dims.end());
  if (batching) dims[at] = ticket.rows;
  outputs.push_back(made);
  tensor_bytes += made.size;
  // elements without a fixed size were put together in Python before they came here
  copied_bytes += output.offsets.empty() ? made.size : 2 * made.size;
  return true;
}

Timing Writer::timing(const NativeTicket& ticket) const {
  Timing made;
  if (!ticket.request.timing) return made;
  made.wanted = true;
  made.queue_us = std::max<int64_t>(0, execution.taken_ns - ticket.arrival_ns) / ns_per_us;
  made.execute_us = (execution.ran_ns - execution.taken_ns) / ns_per_us;
  made.has_features = ticket.request.route->has_features;
  made.features_us = execution.features_ns / ns_per_us;
  made.batch_rows = execution.rows;
  made.total_us = (now - ticket.arrival_ns) / ns_per_us;
  return made;
}

Command Writer::answer(NativeTicket& ticket, int64_t first_row) {
  try {
    return encoded(ticket, first_row);
  } catch (const std::bad_alloc&) {
    // its neighbours may be smaller
    return failed(ticket, Ending{Code::internal, "no memory for the answer", {}});
  }
}

Command Writer::encoded(NativeTicket& ticket, int64_t first_row) {
  const Route& route = *ticket.request.route;
  outputs.clear();
  dims.clear();
  size_t count = ticket.request.outputs.empty() ? route.outputs.size() : ticket.request.outputs.size();
  for (size_t place = 0; place < count; ++place) {
    uint16_t index = ticket.request.outputs.empty() ? static_cast<uint16_t>(place) : ticket.request.outputs[place];
    if (!select(index, ticket, first_row)) {
      std::string text = "model '" + route.model + "' gave no output '" + route.outputs[index].name + "'";
      return failed(ticket, Ending{Code::internal, std::move(text), {}});
    }
  }
  const int64_t* at = dims.data();
  for (OutputData& output : outputs) {
    output.dims = at;
    at += output.dims_count;
  }
  size_t size = 0;
  Bytes message = encode_response(route, ticket.request.id, outputs, timing(ticket), &size, ticket.place >= 0);
  if (!message.data) {
    std::string text = "Response has byte size " + std::to_string(size) + " which exceeds gRPC's byte size limit " +
                       std::to_string(max_response_bytes) + ".";
    return failed(ticket, Ending{Code::invalid_argument, std::move(text), {}});
  }
  Command command;
  command.stream = std::move(ticket.stream);
  command.answers = ticket.place;
  command.message = std::move(message);
  return command;
}

}  // namespace

Bytes error_of(const NativeTicket& ticket, std::string_view text) {
  return encode_error(text, ticket.request.id, ticket.request.route->model, ticket.request.version);
}

void Plane::finish(Taken& taken, const std::vector<PartResult>& parts, const Execution& execution, int64_t ran_rows,
                   int64_t took_ns, std::vector<uint8_t>& answered) {
  answered.assign(taken.tickets.size(), 0);
  int64_t ended_ns = now_ns();
  bool batching;
  {
    Lock lock(mutex_);
    Device& its = *devices_.at(taken.device);
    leave(its, taken);
    batching = its.plan.queue(taken.queue_id)->rules.max_batch > 0;
    if (ran_rows) its.plan.observe(taken.queue_id, taken.size_class, ran_rows, took_ns, execution.lead_ns, ended_ns);
    for (size_t index = 0; index < taken.tickets.size(); ++index) {
      Ticket& ticket = *taken.tickets[index];
      if (ticket.state != State::taken) continue;
      answered[index] = 1;
      end(ticket);
    }
    running_[taken.queue_id]--;
    traffic_.gathered += taken.gathered_bytes;
    idle_.notify_all();
  }
  std::map<Loop*, std::vector<Command>> commands;
  for (const PartResult& part : parts) {
    Writer writer{part, execution, batching, ended_ns, {}, {}};
    int64_t row = 0;
    for (size_t index = part.first; index < part.last; ++index) {
      Ticket& ticket = *taken.tickets[index];
      if (ticket.native) {
        NativeTicket& native = static_cast<NativeTicket&>(ticket);
        if (answered[index]) {
          Loop* loop = &native.stream->loop();
          commands[loop].push_back(part.executed ? writer.answer(native, row) : failed(native, part.error));
        }
        native.forget();
      }
      row += ticket.rows;
    }
    tensor_bytes_out_.fetch_add(writer.tensor_bytes, std::memory_order_relaxed);
    encoded_.fetch_add(writer.copied_bytes, std::memory_order_relaxed);
  }
  for (auto last = commands.begin(); last != commands.end();) {
    auto [loop, its] = std::move(*last);
    bool all = ++last == commands.end();
    // how long answers take to leave: told by the last loop that has any
    loop->post(std::move(its),
               all ? std::function<void()>([this, ended_ns] { observe_delivery(now_ns() - ended_ns); }) : nullptr);
  }
}

void Plane::fail(uint64_t queue_id, const Ending& ending) {
  Late failed{{}, Ended::failed, ending};
  {
    Lock lock(mutex_);
    Device* its = device_of(queue_id);
    if (!its) return;
    its->plan.queue(queue_id)->closed = true;
    for (Ref<Ticket>& ticket : its->plan.all_waiting()) {
      if (ticket->queue_id != queue_id) continue;
      its->plan.withdraw(*ticket);
      end_late(std::move(ticket), failed);
    }
    for (auto& [token, tickets] : its->staged) {
      for (Ref<Ticket>& ticket : tickets) {
        if (ticket->queue_id == queue_id && ticket->state == State::taken) end_late(ticket, failed);
      }
    }
  }
  tell(failed);
}

void Plane::stop() {
  Late waiting = late(Ended::stopping);
  {
    Lock lock(mutex_);
    if (!stopped_) {
      stopped_ = true;
      for (auto& [name, its] : devices_) {
        for (Ref<Ticket>& ticket : its->plan.all_waiting()) {
          its->plan.withdraw(*ticket);
          end_late(std::move(ticket), waiting);
        }
        its->changed.notify_all();
      }
      timer_changed_.notify_all();
    }
  }
  tell(waiting);
  std::lock_guard<std::mutex> one(stopping_mutex_);
  if (timer_.joinable()) timer_.join();
}

void Plane::tell(Late& late) {
  if (late.entries.empty()) return;
  std::vector<std::pair<uint64_t, bool>> numbers;
  std::map<Loop*, std::vector<Command>> commands;
  for (Late::Entry& entry : late.entries) {
    if (!entry.ticket->native) {
      numbers.emplace_back(static_cast<PythonTicket&>(*entry.ticket).python_number, entry.in_batch);
      continue;
    }
    Command command;
    command.stream = entry.stream;
    command.answers = static_cast<NativeTicket&>(*entry.ticket).place;
    command.message = std::move(entry.answer);
    command.code = entry.executing ? Code::deadline_exceeded : late.ending.code;
    command.text = entry.executing ? "Deadline Exceeded" : late.ending.text;
    if (!entry.executing) command.trailing = late.ending.trailing;
    commands[&entry.stream->loop()].push_back(std::move(command));
    if (!entry.in_batch) static_cast<NativeTicket&>(*entry.ticket).forget();
  }
  for (auto& [loop, its] : commands) loop->post(std::move(its));
  if (!numbers.empty() && on_ended_) on_ended_(numbers, late.why);
}

}  // namespace podium
