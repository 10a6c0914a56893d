"""Rows that broke a constraint, counted."""

from server.core.versions import VersionKey
from server.telemetry.invalid import InvalidCounts
from server.telemetry.recorder import VersionRecorder


def test_rows_add_up_by_input_constraint_and_action() -> None:
    counts = InvalidCounts()
    counts.add({("x", "finite", "reject"): 2})
    before = counts.rows()
    counts.add({("x", "finite", "reject"): 1, ("x", "finite", "count"): 4})
    assert before == {("x", "finite", "reject"): 2}
    assert counts.rows() == {("x", "finite", "reject"): 3, ("x", "finite", "count"): 4}


def test_a_version_tells_them_with_everything_else() -> None:
    recorder = VersionRecorder(VersionKey("m", 1))
    assert recorder.snapshot().invalid == {}
    recorder.invalid.add({("x", "complete", "count"): 1})
    assert recorder.snapshot().invalid == {("x", "complete", "count"): 1}
