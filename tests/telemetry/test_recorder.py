"""One version's counts: what a batch adds, what a refusal adds, and that no thread loses any."""

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.versions import VersionKey
from server.telemetry.recorder import OUTCOMES, PHASES, REFUSALS, VersionRecorder

_KEY = VersionKey("ranker", 3)
_NO_DEADLINE = 2**62


def _recorder() -> VersionRecorder:
    return VersionRecorder(_KEY, lambda: 1_700_000_000_123_456_789)


def _batch(**changes: Any) -> dict[str, Any]:
    """Three requests of 1, 2 and 3 rows that arrived at 1000, 2000 and 3000 ns and ran in a bucket of 8."""
    return {
        "spans": np.array([0, 1, 3, 6], np.int64),
        "arrival_ns": np.array([1_000, 2_000, 3_000], np.int64),
        "deadline_ns": np.array([_NO_DEADLINE, 9_000, 10_000], np.int64),
        "answered": np.array([True, True, True]),
        "failed": np.array([False, False, False]),
        "taken_ns": 5_000,
        "input_ns": 10,
        "infer_ns": 200,
        "output_ns": 30,
        "finished_ns": 10_000,
        "padded_rows": 8,
        "released": "full",
        **changes,
    }


def test_a_new_recorder_has_seen_nothing() -> None:
    stats = _recorder().snapshot()
    assert stats.key == _KEY
    assert (stats.inference_count, stats.execution_count, stats.last_inference_ms, stats.memory_bytes) == (0, 0, 0, 0)
    parts = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"}
    assert set(stats.durations) == parts
    assert set(stats.durations.values()) == {(0, 0)}
    assert stats.requests == dict.fromkeys(OUTCOMES, 0)
    assert stats.refused == dict.fromkeys(REFUSALS, 0)
    assert (stats.batches, stats.released) == ([], {})


def test_an_answered_batch() -> None:
    recorder = _recorder()
    recorder.batch(**_batch())
    stats = recorder.snapshot()
    assert (stats.inference_count, stats.execution_count) == (6, 1)
    assert stats.last_inference_ms == 1_700_000_000_123
    assert stats.durations == {
        "success": (3, 9_000 + 8_000 + 7_000),
        "fail": (0, 0),
        "queue": (3, 4_000 + 3_000 + 2_000),
        "compute_input": (3, 30),
        "compute_infer": (3, 600),
        "compute_output": (3, 90),
        "cache_hit": (0, 0),
        "cache_miss": (0, 0),
    }
    assert stats.batches == [(8, {"compute_input": (1, 10), "compute_infer": (1, 200), "compute_output": (1, 30)})]
    assert stats.requests == {"ok": 3, "failed": 0, "abandoned": 0, "refused": 0}
    assert stats.late == 1, "finished at 10000: later than 9000, not later than 10000"
    assert (stats.rows, stats.padding_rows) == (6, 2)
    assert (stats.elements, stats.padding_elements) == (0, 0)
    assert stats.released == {"full": 1}
    assert {phase: histogram.sum for phase, histogram in stats.histograms.items()} == {
        "queue": 9_000,
        "execute": 720,
        "total": 24_000,
    }
    assert (stats.batch_rows.sum, stats.batch_rows.count) == (6, 1)


def test_elements_of_padded_inputs_add_up() -> None:
    recorder = _recorder()
    recorder.batch(**_batch(elements=70, padding_elements=58))
    recorder.batch(**_batch(elements=3, padding_elements=125))
    stats = recorder.snapshot()
    assert (stats.elements, stats.padding_elements) == (73, 183)


def test_what_the_cache_answered_is_answered_and_never_executed() -> None:
    recorder = _recorder()
    recorder.batch(**_batch())
    recorder.cache_miss(100)
    recorder.cache_kept(30, 2)
    recorder.cache_hit(50, 1_000)
    recorder.cache_hit(50, 3_000)
    stats = recorder.snapshot()
    assert stats.durations["cache_hit"] == (2, 100)
    assert stats.durations["cache_miss"] == (1, 130)
    assert stats.cache_evictions == 2
    assert stats.durations["success"] == (5, 24_000 + 4_000)
    assert stats.durations["queue"] == (5, 9_000), "a hit waits for 0 ns, but clients find a version by this count"
    assert stats.durations["compute_infer"] == (3, 600)
    assert stats.requests == {"ok": 5, "failed": 0, "abandoned": 0, "refused": 0}
    assert (stats.inference_count, stats.execution_count) == (6, 1)
    assert {phase: histogram.count for phase, histogram in stats.histograms.items()} == {"queue": 3, "execute": 3, "total": 5}


def test_failed_and_abandoned_requests_do_not_count_as_answered() -> None:
    recorder = _recorder()
    recorder.batch(**_batch(failed=np.array([True, False, False]), answered=np.array([True, False, True])))
    stats = recorder.snapshot()
    assert stats.requests == {"ok": 1, "failed": 1, "abandoned": 1, "refused": 0}
    assert stats.inference_count == 3
    assert stats.durations["success"] == (1, 7_000)
    assert stats.durations["fail"] == (2, 9_000 + 8_000)
    assert stats.durations["queue"] == (1, 2_000)
    assert stats.durations["compute_infer"] == (1, 200)
    assert stats.late == 0, "the late one was abandoned: nobody was answered late"
    assert stats.execution_count == 1
    assert stats.rows == 6


def test_a_failed_request_whose_caller_has_gone_is_failed() -> None:
    recorder = _recorder()
    recorder.batch(**_batch(failed=np.array([True, True, True]), answered=np.array([False, True, False])))
    stats = recorder.snapshot()
    assert stats.requests == {"ok": 0, "failed": 3, "abandoned": 0, "refused": 0}
    assert stats.histograms["execute"].count == 0
    assert stats.durations["fail"] == (3, 24_000)
    assert stats.inference_count == 0


def test_more_rows_than_were_executed_is_a_bug_and_records_nothing() -> None:
    recorder = _recorder()
    with pytest.raises(ValueError, match="5 executed rows cannot hold the 6"):
        recorder.batch(**_batch(padded_rows=5))
    assert recorder.snapshot().execution_count == 0


def test_batch_sizes_are_kept_apart_and_ascend() -> None:
    recorder = _recorder()
    for size in (16, 8, 16):
        recorder.batch(**_batch(padded_rows=size, released="idle"))
    stats = recorder.snapshot()
    assert [(size, parts["compute_infer"]) for size, parts in stats.batches] == [(8, (1, 200)), (16, (2, 400))]
    assert stats.released == {"idle": 3}


def test_refusals_are_counted_by_reason() -> None:
    recorder = _recorder()
    recorder.refused("expired", 4)
    recorder.refused("queue_full")
    stats = recorder.snapshot()
    assert (stats.refused["expired"], stats.refused["queue_full"], stats.requests["refused"]) == (4, 1, 5)
    assert stats.durations["fail"] == (5, 0)


def test_an_unknown_reason_and_a_negative_count_are_refused() -> None:
    recorder = _recorder()
    with pytest.raises(ValueError, match=r"unknown reason 'mood'.*queue_full, expired"):
        recorder.refused("mood")
    with pytest.raises(ValueError, match="cannot take -1"):
        recorder.refused("expired", -1)
    assert recorder.snapshot().requests["refused"] == 0


def test_memory_is_what_was_stated_last() -> None:
    recorder = _recorder()
    recorder.hold_memory(7)
    recorder.hold_memory(5)
    assert recorder.snapshot().memory_bytes == 5


def test_a_snapshot_does_not_change_any_more() -> None:
    recorder = _recorder()
    recorder.batch(**_batch())
    before = recorder.snapshot()
    recorder.batch(**_batch())
    recorder.refused("invalid")
    assert (before.execution_count, before.histograms["total"].count, before.refused["invalid"]) == (1, 3, 0)
    assert before.batches[0][1]["compute_infer"] == (1, 200)
    assert before.released == {"full": 1}


@given(st.data())
def test_every_request_has_one_outcome_and_phases_cover_the_answered(data: st.DataObject) -> None:
    recorder, executed, rows_ok = _recorder(), 0, 0
    for _ in range(data.draw(st.integers(0, 4))):
        size = data.draw(st.integers(1, 70))
        flags = st.lists(st.booleans(), min_size=size, max_size=size)
        answered, failed = np.array(data.draw(flags)), np.array(data.draw(flags))
        rows = np.array(data.draw(st.lists(st.integers(1, 9), min_size=size, max_size=size)), np.int64)
        recorder.batch(
            **_batch(
                spans=np.concatenate(([0], rows.cumsum())),
                arrival_ns=np.array(data.draw(st.lists(st.integers(0, 5_000), min_size=size, max_size=size)), np.int64),
                deadline_ns=np.full(size, _NO_DEADLINE),
                answered=answered,
                failed=failed,
                padded_rows=int(rows.sum()),
            )
        )
        executed += size
        rows_ok += int(rows[answered & ~failed].sum())
    stats = recorder.snapshot()
    assert sum(stats.requests.values()) == executed
    assert stats.inference_count == rows_ok
    assert {stats.histograms[phase].count for phase in PHASES} == {stats.requests["ok"]} == {stats.durations["success"][0]}
    spent = sum(stats.durations[part][1] for part in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert spent <= stats.durations["success"][1]


def test_threads_lose_no_count() -> None:
    recorder = _recorder()
    start = threading.Barrier(4)

    def write() -> None:
        start.wait()
        for _ in range(200):
            recorder.batch(**_batch())
            recorder.refused("expired")

    def read() -> None:
        start.wait()
        for _ in range(200):
            stats = recorder.snapshot()
            assert stats.requests["ok"] == 3 * stats.execution_count == stats.histograms["queue"].count
            assert stats.inference_count == stats.rows == 6 * stats.execution_count

    failures: list[BaseException] = []

    def guarded(work: Any) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - an assertion on another thread must reach this test
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in (write, write, write, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    stats = recorder.snapshot()
    assert (stats.execution_count, stats.requests["ok"], stats.refused["expired"]) == (600, 1800, 600)


def test_answers_of_a_decoupled_version_are_in_the_snapshot() -> None:
    recorder = _recorder()
    assert recorder.snapshot().answers == {}
    recorder.answers(np.array([3, 1], dtype=np.int64), "empty_response", 2)
    recorder.answers(np.array([4, 1], dtype=np.int64), "empty_response", 2)
    assert recorder.snapshot().answers == {
        0: {"compute_infer": (2, 7), "compute_output": (2, 2), "success": (2, 9)},
        1: {"empty_response": (2, 4)},
    }


def test_features_are_timed_per_batch_once_there_are_any() -> None:
    recorder = _recorder()
    assert recorder.snapshot().features is None
    recorder.features(300_000)
    before = recorder.snapshot().features
    recorder.features(70_000)
    after = recorder.snapshot().features
    assert before is not None
    assert after is not None
    assert (before.count, before.sum) == (1, 300_000), "a snapshot is of its instant"
    assert (after.count, after.sum) == (2, 370_000)
