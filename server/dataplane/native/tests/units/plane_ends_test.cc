// Ends of single calls: what is read for them, kept of them, and counted.
#include "check.h"
#include "plane_stage.h"

namespace podium::units {

TEST(rows_that_an_output_does_not_have_are_not_read) {
  Stage stage;
  stage.open(1);
  Ref<FakeStream> first = call(stage, 2, hour_ns), second = call(stage, 1, 2 * hour_ns);
  std::unique_ptr<Taken> taken = stage.plane.take("cpu");
  CHECK_EQUAL(taken->tickets.size(), 2u);
  std::vector<int64_t> rows(2 * width, 1);
  for (std::vector<int64_t> dims : {std::vector<int64_t>{2, width}, std::vector<int64_t>{}}) {
    PartOutput output{true, reinterpret_cast<uint8_t*>(rows.data()), rows.size() * 8, dims, width * 8, {}};
    std::vector<uint8_t> answered;
    stage.plane.finish(*taken, {PartResult{0, 2, true, {output}, {}}}, Execution{}, 0, 0, answered);
    stage.loops[0]->run_posted();
    CHECK(first->ended == (dims.empty() ? Code::internal : Code::ok) && first->ends == 1);
    CHECK(second->ended == Code::internal && second->ends == 1);
    if (dims.empty()) break;
    first = call(stage, 2, hour_ns), second = call(stage, 1, 2 * hour_ns);
    taken = stage.plane.take("cpu");
  }
}

TEST(a_call_that_is_left_while_it_waits_is_not_kept_until_its_deadline) {
  Stage stage;
  stage.open(1);
  Ref<FakeStream> stream = call(stage, 1, hour_ns);
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

}  // namespace podium::units
