#include "age_policy.h"
#include "check.h"
#include "flood_policy.h"
#include "ping_policy.h"

using namespace podium;

namespace {

constexpr int64_t start_ns = 1'000 * ns_per_s;
constexpr uint8_t data = 0, headers = 1, priority = 2, settings = 4, window_update = 8, continuation = 9, ends = 1;

// How many times `step` may be done before it says that the connection is to end; `most` if it never does.
template <typename Step>
int until_ended(int most, Step step) {
  for (int count = 0; count < most; ++count) {
    if (step()) return count;
  }
  return most;
}

}  // namespace

TEST(pings_that_come_too_often_are_struck) {
  PingStrikes strikes(300'000, 2, false);
  int64_t now_ns = start_ns;
  CHECK(!strikes.received(now_ns, true));
  CHECK(!strikes.received(now_ns += ns_per_s, true));
  CHECK(!strikes.received(now_ns += ns_per_s, true));
  CHECK(strikes.received(now_ns += ns_per_s, true));
}

TEST(patient_pings_are_welcome) {
  PingStrikes strikes(300'000, 1, false);
  int64_t now_ns = start_ns;
  CHECK_EQUAL(until_ended(100, [&] { return strikes.received(now_ns += 300 * ns_per_s, true); }), 100);
  // one strike is allowed, and is not forgotten
  CHECK(!strikes.received(now_ns += ns_per_s, true));
  CHECK(!strikes.received(now_ns += 300 * ns_per_s, true));
  CHECK(strikes.received(now_ns += ns_per_s, true));
}

TEST(connections_without_calls_may_ping_every_two_hours) {
  PingStrikes strikes(1000, 1, false);
  int64_t now_ns = start_ns;
  CHECK(!strikes.received(now_ns, false));
  CHECK(!strikes.received(now_ns += 7'199 * ns_per_s, false));
  CHECK(!strikes.received(now_ns += 7'200 * ns_per_s, false));
  CHECK(strikes.received(now_ns += 7'199 * ns_per_s, false));
  PingStrikes permitted(1000, 1, true);
  CHECK_EQUAL(until_ended(100, [&] { return permitted.received(now_ns += ns_per_s, false); }), 100);
}

TEST(what_is_sent_forgives_strikes) {
  PingStrikes strikes(300'000, 1, false);
  int64_t now_ns = start_ns;
  CHECK_EQUAL(until_ended(100,
                          [&] {
                            strikes.sent();
                            bool ended = strikes.received(now_ns += 1, true);
                            return ended || strikes.received(now_ns += 1, true);
                          }),
              100);
}

TEST(without_a_number_of_strikes_nobody_is_sent_away) {
  PingStrikes strikes(300'000, 0, false);
  CHECK_EQUAL(until_ended(1000, [&] { return strikes.received(start_ns, true); }), 1000);
  PingStrikes any_interval(0, 1, false);
  CHECK_EQUAL(until_ended(1000, [&] { return any_interval.received(start_ns, true); }), 1000);
}

TEST(silent_callers_are_pinged_and_given_up) {
  Keepalive alive(10'000, 2'000, false, 0, start_ns);
  CHECK_EQUAL(alive.next_ns(), start_ns + 10 * ns_per_s);
  CHECK(alive.step(start_ns + 10 * ns_per_s - 1, true) == Keepalive::Step::nothing);
  CHECK(alive.step(start_ns + 10 * ns_per_s, true) == Keepalive::Step::ping);
  CHECK_EQUAL(alive.next_ns(), start_ns + 12 * ns_per_s);
  CHECK(alive.step(start_ns + 11 * ns_per_s, true) == Keepalive::Step::nothing);
  CHECK(alive.step(start_ns + 12 * ns_per_s, true) == Keepalive::Step::close);
  CHECK(alive.step(start_ns + 99 * ns_per_s, true) == Keepalive::Step::nothing);
  CHECK_EQUAL(alive.next_ns(), no_deadline_ns);
}

TEST(whoever_sends_is_not_pinged) {
  Keepalive alive(10'000, 2'000, false, 0, start_ns);
  alive.heard(start_ns + 9 * ns_per_s);
  CHECK(alive.step(start_ns + 10 * ns_per_s, true) == Keepalive::Step::nothing);
  CHECK(alive.step(start_ns + 19 * ns_per_s, true) == Keepalive::Step::ping);
  alive.heard(start_ns + 20 * ns_per_s);
  CHECK(alive.step(start_ns + 21 * ns_per_s, true) == Keepalive::Step::nothing);
  CHECK(alive.step(start_ns + 30 * ns_per_s, true) == Keepalive::Step::ping);
}

TEST(without_calls_nobody_is_pinged_unless_permitted) {
  Keepalive quiet(10'000, 2'000, false, 0, start_ns);
  CHECK(quiet.step(start_ns + 10 * ns_per_s, false) == Keepalive::Step::nothing);
  CHECK_EQUAL(quiet.next_ns(), start_ns + 20 * ns_per_s);
  CHECK(quiet.step(start_ns + 20 * ns_per_s, true) == Keepalive::Step::ping);
  Keepalive permitted(10'000, 2'000, true, 0, start_ns);
  CHECK(permitted.step(start_ns + 10 * ns_per_s, false) == Keepalive::Step::ping);
  // a ping that was sent is waited for, whatever became of the calls
  CHECK(permitted.step(start_ns + 12 * ns_per_s, false) == Keepalive::Step::close);
}

TEST(pings_without_data_may_be_few) {
  Keepalive alive(10'000, 2'000, true, 2, start_ns);
  int64_t now_ns = start_ns;
  auto pinged = [&] {
    bool found = alive.step(now_ns += 10 * ns_per_s, true) == Keepalive::Step::ping;
    if (found) alive.heard(now_ns);
    return found;
  };
  CHECK(pinged() && pinged());
  CHECK(!pinged() && !pinged());
  alive.sent_data();
  CHECK(pinged() && pinged() && !pinged());
}

TEST(old_connections_are_drained_and_then_closed) {
  AgePolicy age(0, 100'000, 30'000, 0.5, start_ns);
  CHECK_EQUAL(age.next_ns(), start_ns + 100 * ns_per_s);
  CHECK(age.step(start_ns + 100 * ns_per_s - 1) == AgePolicy::Step::nothing);
  CHECK(age.step(start_ns + 101 * ns_per_s) == AgePolicy::Step::drain);
  CHECK_EQUAL(age.next_ns(), start_ns + 131 * ns_per_s);
  age.calls(0, start_ns + 102 * ns_per_s);
  CHECK(age.step(start_ns + 130 * ns_per_s) == AgePolicy::Step::nothing);
  CHECK(age.step(start_ns + 131 * ns_per_s) == AgePolicy::Step::close);
  CHECK(age.step(start_ns + 999 * ns_per_s) == AgePolicy::Step::nothing);
  CHECK_EQUAL(age.next_ns(), no_deadline_ns);
}

TEST(chance_spreads_ages_by_a_tenth) {
  CHECK_EQUAL(AgePolicy(0, 100'000, 0, 0.0, start_ns).next_ns(), start_ns + 90 * ns_per_s);
  int64_t latest_ns = AgePolicy(0, 100'000, 0, 0.999999, start_ns).next_ns();
  CHECK(latest_ns > start_ns + 109 * ns_per_s && latest_ns <= start_ns + 110 * ns_per_s);
}

TEST(without_grace_a_drained_connection_closes_at_once) {
  AgePolicy age(0, 1000, 0, 0.5, start_ns);
  CHECK(age.step(start_ns + ns_per_s) == AgePolicy::Step::drain);
  CHECK(age.step(start_ns + ns_per_s) == AgePolicy::Step::close);
}

TEST(idle_connections_are_drained) {
  AgePolicy age(5'000, 0, 1'000, 0.5, start_ns);
  CHECK_EQUAL(age.next_ns(), start_ns + 5 * ns_per_s);
  age.calls(1, start_ns + ns_per_s);
  CHECK_EQUAL(age.next_ns(), no_deadline_ns);
  CHECK(age.step(start_ns + 1000 * ns_per_s) == AgePolicy::Step::nothing);
  age.calls(0, start_ns + 1000 * ns_per_s);
  CHECK(age.step(start_ns + 1004 * ns_per_s) == AgePolicy::Step::nothing);
  CHECK(age.step(start_ns + 1005 * ns_per_s) == AgePolicy::Step::drain);
}

TEST(without_limits_connections_live_for_ever) {
  AgePolicy age(0, 0, 30'000, 0.9, start_ns);
  age.calls(0, start_ns);
  CHECK_EQUAL(age.next_ns(), no_deadline_ns);
  CHECK(age.step(start_ns + 1'000'000 * ns_per_s) == AgePolicy::Step::nothing);
  // the longest that can be set
  CHECK_EQUAL(AgePolicy(604'800'000, 604'800'000, 0, 0.5, start_ns).next_ns(), start_ns + 604'800 * ns_per_s);
}

TEST(calls_that_are_reset_at_once_are_a_flood) {
  FloodLimits limits;
  FloodPolicy flood(limits, start_ns);
  CHECK_EQUAL(until_ended(100'000, [&] { return flood.reset(10 * ns_per_us, start_ns); }), 1000);
  // time forgives, at its pace
  CHECK_EQUAL(until_ended(100'000, [&] { return flood.reset(0, start_ns + 2 * ns_per_s); }), 200);
  flood.answered();
  CHECK(!flood.reset(0, start_ns + 2 * ns_per_s));
  CHECK(flood.reset(0, start_ns + 2 * ns_per_s));
}

TEST(deadlines_that_pass_are_no_flood) {
  FloodPolicy flood(FloodLimits{}, start_ns);
  CHECK_EQUAL(until_ended(100'000, [&] { return flood.reset(2 * ns_per_ms, start_ns); }), 100'000);
}

TEST(whoever_is_answered_may_change_its_mind) {
  FloodPolicy flood(FloodLimits{}, start_ns);
  CHECK_EQUAL(until_ended(100'000,
                          [&] {
                            flood.answered();
                            return flood.reset(0, start_ns);
                          }),
              100'000);
}

TEST(data_without_bytes_is_a_flood) {
  FloodPolicy flood(FloodLimits{}, start_ns);
  CHECK_EQUAL(until_ended(100'000, [&] { return flood.frame(data, 0, 0, start_ns); }), 100);
  CHECK(!flood.frame(data, ends, 0, start_ns));
  CHECK_EQUAL(until_ended(100'000, [&] { return flood.frame(data, 0, 1, start_ns); }), 100'000);
}

TEST(headers_that_never_end_are_a_flood) {
  FloodPolicy flood(FloodLimits{}, start_ns);
  CHECK_EQUAL(until_ended(1000,
                          [&] {
                            bool ended = flood.frame(headers, 0, 10, start_ns);
                            for (int count = 0; count < 8; ++count) ended |= flood.frame(continuation, 0, 0, start_ns);
                            return ended;
                          }),
              1000);
  CHECK(flood.frame(continuation, 0, 16384, start_ns));
}

TEST(frames_that_carry_nothing_are_a_flood) {
  for (uint8_t type : {settings, priority, window_update, uint8_t{0xB7}}) {
    FloodPolicy flood(FloodLimits{}, start_ns);
    CHECK_EQUAL(until_ended(100'000, [&] { return flood.frame(type, 0, 0, start_ns); }), 10'000);
    CHECK_EQUAL(until_ended(100'000, [&] { return flood.frame(type, 0, 0, start_ns + ns_per_s); }), 1000);
  }
}

TEST(windows_move_as_data_flows) {
  FloodPolicy sending(FloodLimits{}, start_ns), receiving(FloodLimits{}, start_ns);
  CHECK_EQUAL(until_ended(100'000,
                          [&] {
                            sending.sent_data();
                            receiving.frame(data, 0, 100, start_ns);
                            bool ended = sending.frame(window_update, 0, 4, start_ns);
                            return ended || receiving.frame(window_update, 0, 4, start_ns);
                          }),
              100'000);
}

TEST(a_clock_that_stands_or_steps_back_gives_nothing) {
  Bucket bucket(2, 1000, start_ns);
  CHECK(bucket.take(start_ns) && bucket.take(start_ns) && !bucket.take(start_ns));
  CHECK(!bucket.take(start_ns - ns_per_s));
  CHECK(!bucket.take(start_ns));
  CHECK(bucket.take(start_ns + ns_per_ms));
}

TEST(a_bucket_never_holds_more_than_its_size) {
  Bucket bucket(2, 1000, start_ns);
  bucket.give(1e9);
  CHECK_EQUAL(until_ended(100, [&] { return !bucket.take(start_ns + 1'000'000 * ns_per_s); }), 2);
}
