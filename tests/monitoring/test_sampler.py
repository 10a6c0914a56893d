"""What was answered, chosen and copied: the right rows, with what they were answered by."""

import numpy as np
import pytest

from server.core.hashing import id_hash
from server.core.monitoring_settings import ModelMonitoring
from server.monitoring.choose import ANONYMOUS
from server.monitoring.lane import Lane
from server.monitoring.picked import Served, rows_of
from server.monitoring.sampler import Plan, Sampler
from tests.monitoring.sampled import KEY, Gathering
from tests.monitoring.test_lane import until

ALL = ModelMonitoring(rate=1.0)


def served(rows: list[int], answered: list[bool] | None = None, **changes: object) -> Served:
    """Requests of so many rows each; each row knows its number."""
    spans = np.cumsum([40, *rows]).astype(np.int64)  # a part in the middle of a batch
    count, total = len(rows), sum(rows)
    made = Served(
        spans=spans,
        id_hashes=np.array([id_hash(f"r{i}") for i in range(count)], dtype=np.uint64),
        arrival_ns=np.arange(count, dtype=np.int64) * 1000,
        answered=np.array([True] * count if answered is None else answered),
        inputs={"x": np.arange(total + 3, dtype=np.float32).reshape(-1, 1)},  # rows of padding follow
        callers={"key": np.array([f"k{i}".encode() for i in range(total)], dtype=object).reshape(-1, 1)},
        outputs={"y": 10 * np.arange(total + 3, dtype=np.float32).reshape(-1, 1)},
        statuses=None,
        taken_ns=50_000,
        execute_ns=7_000,
        rows=total,
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def sampled(*batches: Served, plan: Plan | None = None) -> tuple[Gathering, Sampler]:
    sink = Gathering()
    sampler = Sampler(3, [Lane(sink, 10**6, 2**30)], now_ns=lambda: 10**9, wall_us=lambda: 123)
    sampler.follow({KEY: plan or Plan("champion", 4, 0.9, ALL)})
    for batch in batches:
        sampler.offer(KEY, batch)
    sampler.close()
    return sink, sampler


def test_every_row_of_an_answered_request_is_copied_with_its_own_answer() -> None:
    batch = served([1, 3, 2], [True, False, True])
    sink, sampler = sampled(batch)
    (got,) = sink.got
    assert got.inputs["x"].ravel().tolist() == [0, 4, 5]
    assert got.outputs["y"].ravel().tolist() == [0, 40, 50]
    assert got.callers["key"].ravel().tolist() == [b"k0", b"k4", b"k5"]
    assert got.id_hash.tolist() == [id_hash("r0"), id_hash("r2"), id_hash("r2")]
    assert got.row.tolist() == [0, 0, 1]
    assert got.queue_us.tolist() == [50, 48, 48]
    assert got.execute_us.tolist() == [7, 7, 7]
    assert got.time_us.tolist() == [123, 123, 123]
    assert got.inclusion.tolist() == [1.0, 1.0, 1.0]
    assert (got.key, got.arm, got.epoch, got.weight) == (KEY, "champion", 4, 0.9)
    assert (got.features, got.statuses.shape) == ((), (3, 0))
    batch.inputs["x"][:] = -1  # the engine goes on with its arrays
    assert got.inputs["x"].ravel().tolist() == [0, 4, 5]
    reading = sampler.reading()
    assert reading.offered == {(KEY, "champion"): 3}
    assert reading.written == {"gathering": 3}
    assert (reading.dropped, reading.waiting) == ({}, {"gathering": 0})
    assert reading.rates == {(KEY, "champion"): 1.0}
    assert sampler.lag_s() == 0.0


def test_statuses_go_with_their_rows() -> None:
    statuses = np.arange(6, dtype=np.uint8).reshape(3, 2)
    sink, _ = sampled(served([1, 1, 1], [True, False, True], statuses=statuses), plan=Plan("champion", 0, 1.0, ALL, ("a", "b")))
    assert sink.got[0].features == ("a", "b")
    assert sink.got[0].statuses.tolist() == [[0, 1], [4, 5]]


def test_nobody_answered_and_nobody_chosen_is_nothing() -> None:
    sink, _ = sampled(served([1, 1], [False, False]))
    assert sink.got == []
    sink, _ = sampled(served([1, 1]), plan=Plan("champion", 0, 1.0, ModelMonitoring(rate=1e-9, floor_rows=0)))
    assert sink.got == []


def test_ignored_and_large_columns_are_left_out() -> None:
    batch = served([1])
    batch.inputs = {"x": batch.inputs["x"], "image": np.zeros((1, 3, 64, 64), dtype=np.float32), "secret": np.zeros((1, 1))}
    sink, _ = sampled(batch, plan=Plan("champion", 0, 1.0, ModelMonitoring(rate=1.0, ignore=("secret",))))
    assert set(sink.got[0].inputs) == {"x"}


@pytest.mark.parametrize("where", ["callers", "inputs"])
def test_rows_may_say_when_they_happened(where: str) -> None:
    at = {"at": np.array([[5], [6], [7]], dtype=np.int64)}
    plan = Plan("champion", 0, 1.0, ModelMonitoring(rate=1.0, time_input="at"))
    sink, _ = sampled(served([1, 1, 1], [True, False, True], **{where: at}), plan=plan)
    assert sink.got[0].time_us.tolist() == [5, 7]


@pytest.mark.parametrize("at", [{}, {"at": np.zeros((3, 2), dtype=np.int64)}, {"at": np.zeros((3, 1), dtype=np.float32)}])
def test_rows_that_do_not_say_when_happened_now(at: dict[str, object]) -> None:
    plan = Plan("champion", 0, 1.0, ModelMonitoring(rate=1.0, time_input="at"))
    sink, _ = sampled(served([1, 1, 1], callers=at), plan=plan)
    assert sink.got[0].time_us.tolist() == [123] * 3


def test_rows_beyond_the_budget_are_dropped_and_counted() -> None:
    plan = Plan("champion", 0, 1.0, ModelMonitoring(rate=1.0, max_rows_per_s=5))
    sink, sampler = sampled(served([2, 2, 2]), served([1]), plan=plan)
    assert [got.rows for got in sink.got] == [5]
    assert sink.got[0].row.tolist() == [0, 1, 0, 1, 0]
    assert sampler.reading().dropped == {("gathering", "budget"): 2}
    assert sink.losses == [(KEY, "champion", 2, 0)]
    assert sampler.reading().offered == {(KEY, "champion"): 7}


def test_versions_come_and_go_and_change_arms_and_no_count_goes_down() -> None:
    sink = Gathering()
    sampler = Sampler(3, [Lane(sink, 10**6, 2**30)])
    assert not sampler.wants(KEY)
    sampler.offer(KEY, served([1]))
    sampler.follow({KEY: Plan("challenger", 0, 0.1, ALL)})
    assert sampler.wants(KEY)
    sampler.offer(KEY, served([1, 1]))
    sampler.follow({KEY: Plan("champion", 1, 1.0, ALL)})
    sampler.offer(KEY, served([1]))
    sampler.follow({KEY: Plan("champion", 2, 1.0, ModelMonitoring(rate=1.0, floor_rows=1))})
    sampler.offer(KEY, served([1]))
    sampler.follow({})
    sampler.offer(KEY, served([1]))
    reading = sampler.reading()
    assert reading.offered == {(KEY, "challenger"): 2, (KEY, "champion"): 2}
    assert reading.rates == {}
    sampler.close()
    assert [(got.arm, got.epoch, got.rows) for got in sink.got] == [
        ("challenger", 0, 2),
        ("champion", 1, 1),
        ("champion", 2, 1),
    ]


def test_many_shapes_of_a_free_dimension_are_not_all_remembered() -> None:
    sink = Gathering()
    sampler = Sampler(3, [Lane(sink, 10**6, 2**30)])
    sampler.follow({KEY: Plan("champion", 0, 1.0, ALL)})
    for size in range(1, 1100):
        sampler.offer(KEY, served([1], inputs={"x": np.zeros((1, size), dtype=np.float32)}))
    sampler.close()
    assert [got.inputs["x"].shape[1] for got in sink.got if "x" in got.inputs] == list(range(1, 1025))


def test_bytes_are_those_of_the_elements() -> None:
    sink = Gathering()
    lane = Lane(sink, 10**6, 300)
    sampler = Sampler(3, [lane])
    sampler.follow({KEY: Plan("champion", 0, 1.0, ALL)})
    sampler.offer(KEY, served([1], callers={"key": np.array([[b"k" * 500]], dtype=object)}))
    assert lane.counts()[2] == {"buffer_full": 1}
    sampler.close()


def test_rows_of_requests() -> None:
    mixed = rows_of(np.array([1, 2]), np.array([4, 5, 8, 10]))
    assert [part.tolist() for part in mixed] == [[1, 1, 1, 2, 2], [1, 2, 3, 4, 5], [0, 1, 2, 0, 1]]


def test_rows_that_cannot_be_copied_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    sink, sampler = sampled(served([1, 1], outputs={"y": np.zeros((1, 1))}))
    assert sink.got == []
    assert sampler.reading().dropped == {("gathering", "not_copied"): 2}
    assert [record.message for record in caplog.records] == ["rows could not be copied"]


HOLDING = Plan("champion", 4, 0.9, ALL, row_bytes=64)


@pytest.mark.parametrize("sizes", [[[1, 1, 1], [1, 1], [1]], [[1, 3, 2], [2], [1, 1, 4]]], ids=["one row each", "several"])
def test_batches_that_were_held_give_the_same_rows(sizes: list[list[int]]) -> None:
    def batches() -> list[Served]:
        made = []
        for place, rows in enumerate(sizes):
            batch = served(rows, [index != 1 for index in range(len(rows))], taken_ns=50_000 + place * 1000)
            batch.id_hashes = np.array([id_hash(f"{place}-{index}") for index in range(len(rows))], dtype=np.uint64)
            batch.statuses = np.arange(sum(rows), dtype=np.uint8).reshape(-1, 1) + np.uint8(10 * place)
            made.append(batch)
        return made

    at_once, _ = sampled(*batches())
    held, sampler = sampled(*batches(), plan=HOLDING)
    assert len(held.got) == 1
    (got,) = held.got
    assert sampler.reading().offered == {(KEY, "champion"): got.rows}
    for name in ("id_hash", "row", "queue_us", "execute_us", "inclusion", "time_us", "statuses"):
        expected = np.concatenate([getattr(each, name) for each in at_once.got])
        assert getattr(got, name).tolist() == expected.tolist(), name
    for name in ("inputs", "callers", "outputs"):
        for column, array in getattr(got, name).items():
            assert array.tolist() == np.concatenate([getattr(each, name)[column] for each in at_once.got]).tolist()


def test_a_batch_that_nobody_is_chosen_of_shifts_no_other() -> None:
    sink, _ = sampled(served([1, 2]), served([1, 1], [False, False]), served([1, 2]), plan=HOLDING)
    assert sink.got[0].inputs["x"].ravel().tolist() == [0, 1, 2, 0, 1, 2]
    assert sink.got[0].id_hash.tolist() == [id_hash("r0"), id_hash("r1"), id_hash("r1")] * 2


def test_enough_is_not_held_and_what_is_not_alike_is_not_mixed() -> None:
    sink = Gathering()
    lane = Lane(sink, 10**6, 2**30)
    sampler = Sampler(3, [lane])
    lane.before = lambda: None  # nobody flushes by time
    sampler.follow({KEY: Plan("champion", 0, 1.0, ALL, row_bytes=2**18)})
    assert HOLDING.held_rows == 4096
    for _ in range(3):
        sampler.offer(KEY, served([1]))
    assert sampler.reading().offered == {(KEY, "champion"): 0}
    sampler.offer(KEY, served([1]))  # four rows of a quarter of a MiB
    assert sampler.reading().offered == {(KEY, "champion"): 4}
    sampler.offer(KEY, served([1]))
    sampler.offer(KEY, served([1], callers={}))
    assert sampler.reading().offered == {(KEY, "champion"): 5}
    sampler.follow({})
    assert sampler.reading().offered == {(KEY, "champion"): 6}
    sampler.close()
    assert [(got.rows, set(got.callers)) for got in sink.got] == [(4, {"key"}), (1, {"key"}), (1, set())]


def test_what_is_held_does_not_wait_for_traffic() -> None:
    sink = Gathering()
    sampler = Sampler(3, [Lane(sink, 10**6, 2**30)])
    sampler.follow({KEY: HOLDING})
    sampler.offer(KEY, served([1, 2]))
    until(lambda: sink.got)
    sampler.close()
    assert [got.rows for got in sink.got] == [3]


def test_a_budget_is_kept_over_batches_that_were_held() -> None:
    plan = Plan("champion", 0, 1.0, ModelMonitoring(rate=1.0, max_rows_per_s=4), row_bytes=64)
    sink, sampler = sampled(served([2, 1]), served([1, 2]), served([1]), plan=plan)
    assert [got.rows for got in sink.got] == [4]
    assert sink.got[0].inputs["x"].ravel().tolist() == [0, 1, 2, 0]
    assert sampler.reading().dropped == {("gathering", "budget"): 3}


def test_a_budget_that_is_spent_takes_nothing() -> None:
    plan = Plan("champion", 0, 1.0, ModelMonitoring(rate=1.0, max_rows_per_s=1))
    sink, sampler = sampled(served([1]), served([1]), plan=plan)
    assert [got.rows for got in sink.got] == [1]
    assert sampler.reading().dropped == {("gathering", "budget"): 1}


def test_who_cannot_have_been_sampled_is_known() -> None:
    sampler = Sampler(3, [])
    drawn = 3 ^ int(0.4 * 2**64)
    assert sampler.may_be_sampled("m", drawn)  # nothing is known
    sampler.follow({KEY: Plan("champion", 0, 1.0, ModelMonitoring(rate=0.5, floor_rows=0))})
    assert sampler.may_be_sampled("m", drawn)
    assert not sampler.may_be_sampled("m", 3 ^ int(0.6 * 2**64))
    assert sampler.may_be_sampled("other", 3 ^ int(0.6 * 2**64))


def test_requests_without_an_id_are_sampled_too() -> None:
    sink, _ = sampled(served([1, 1], id_hashes=np.array([ANONYMOUS, ANONYMOUS])))
    assert sink.got[0].rows == 2
