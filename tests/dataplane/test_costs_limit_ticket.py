import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.clock import NS_PER_S
from server.core.errors import Overloaded
from server.core.signature import CheckedRows
from server.dataplane.costs import TRIAL_AFTER_NS, TRIAL_AT_LATEST_NS, TRIAL_SPACING, CostModel
from server.dataplane.limit import InflightLimit
from server.dataplane.ticket import TRANSITIONS, Ticket, TicketState
from tests.dataplane.histories import CountingReply, ticket


def test_prediction_is_the_bucket_that_holds_the_rows() -> None:
    costs = CostModel((1, 4, 8), (100, 250, 400))
    assert [costs.predict_ns(rows) for rows in (1, 2, 4, 5, 8)] == [100, 250, 250, 400, 400]


def test_an_unmeasured_bucket_is_learned_from_its_first_run() -> None:
    costs = CostModel((1, 4), (0, 0))
    assert costs.predict_ns(3) == 0
    costs.observe(3, 900, 900)
    assert (costs.predict_ns(4), costs.predict_ns(1)) == (900, 0)


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_prediction_follows_a_machine_that_changed_speed(before: int, after: int) -> None:
    costs = CostModel((8,), (before,))
    for _ in range(200):
        costs.observe(8, after, after)
    assert costs.predict_ns(8) == pytest.approx(after, rel=0.01, abs=2)


def test_noise_widens_the_prediction() -> None:
    costs = CostModel((1,), (100,))
    for took in (60, 140) * 50:
        costs.observe(1, took, took)
    assert costs.predict_ns(1) > 120


def test_trials_start_after_a_second_of_refusals_and_end_with_a_run() -> None:
    costs = CostModel((1,), (100,))
    assert not costs.on_trial(1, TRIAL_AFTER_NS)
    costs.refused(1, 5)
    costs.refused(1, 50)
    assert not costs.on_trial(1, TRIAL_AFTER_NS)
    assert costs.on_trial(1, 5 + TRIAL_AFTER_NS)
    costs.observe(1, 100, 5 + TRIAL_AFTER_NS)
    assert not costs.on_trial(1, 10 * TRIAL_AFTER_NS)


def test_trials_of_slow_batches_are_rare_but_not_endlessly_so() -> None:
    slow = CostModel((1,), (NS_PER_S,))
    slow.refused(1, 0)
    assert not slow.on_trial(1, TRIAL_SPACING * NS_PER_S - 1)
    assert slow.on_trial(1, TRIAL_SPACING * NS_PER_S)
    absurd = CostModel((1,), (10**6 * NS_PER_S,))
    absurd.refused(1, 0)
    assert absurd.on_trial(1, TRIAL_AT_LATEST_NS)


def test_a_run_ends_the_trial_of_its_bucket_and_of_smaller_ones() -> None:
    costs = CostModel((1, 4, 8), (100, 100, 100))
    for rows in (1, 4, 8):
        costs.refused(rows, 0)
    costs.observe(3, 100, 200)
    assert [costs.on_trial(rows, TRIAL_AFTER_NS) for rows in (1, 4, 8)] == [False, False, True]


def test_more_rows_never_cost_less() -> None:
    costs = CostModel((1, 8), (100, 200))
    costs.observe(1, 1_000_000, 1_000_000)  # the machine stood still
    assert costs.predict_ns(1) > 1_000
    costs.observe(8, 200, 2_000_000)
    assert costs.predict_ns(1) == costs.predict_ns(8) == 200


def test_a_trial_that_was_faster_than_predicted_is_believed_at_once() -> None:
    costs = CostModel((1,), (100,))
    costs.observe(1, 1_000_000, 1_000_000)
    costs.refused(1, 1_000_000)
    costs.observe(1, 100, 1_000_000 + TRIAL_AFTER_NS + 100)
    assert costs.predict_ns(1) == 100
    costs.refused(1, 0)
    costs.observe(1, 900, TRIAL_AFTER_NS + 900)  # slower: learned from as ever
    assert costs.predict_ns(1) == 100 + 100 + 200


def test_limit_by_requests_and_bytes() -> None:
    limit = InflightLimit(max_requests=2, max_bytes=100)
    limit.enter(500)  # alone, one request larger than the bound still passes
    with pytest.raises(Overloaded, match="500 bytes of inputs are in flight"):
        limit.enter(1)
    limit.leave(500)
    limit.enter(50)
    limit.enter(50)
    with pytest.raises(Overloaded, match="2 requests are in flight"):
        limit.enter(0)
    limit.leave(50)
    limit.leave(50)
    assert (limit.requests, limit.bytes) == (0, 0)


def test_a_ticket_counts_the_bytes_of_its_texts() -> None:
    texts = np.array([[b"a" * 1000], [b"b" * 500]], dtype=object)
    checked = CheckedRows({"X": texts, "Y": np.zeros((2, 1), np.float32)}, 2, ())
    assert Ticket(checked, CountingReply(), 0).nbytes >= 1500 + 8


def test_ticket_transitions_walk_the_table() -> None:
    for state in TicketState:
        for following in TicketState:
            one = ticket()
            one.state = state
            if following in TRANSITIONS[state]:
                one.move(following)
                assert one.state is following
                assert (one.checked is None) == (following is TicketState.ENDED)
            else:
                with pytest.raises(ValueError, match="cannot go from"):
                    one.move(following)
