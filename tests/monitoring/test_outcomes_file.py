"""What is known of outcomes outlives the process, also of versions that are served again only later."""

from pathlib import Path

import numpy as np
import pytest

from server.core.versions import VersionKey
from server.monitoring.outcome import Outcome, ReceiptStatus
from server.monitoring.outcomes import KEPT_PARTS, Outcomes
from server.monitoring.outcomes_file import FILE, OutcomesFile
from tests.monitoring.scored import KEY, Now, scored, settings_of

OTHER = VersionKey("later", 1)


def judged(now: Now) -> Outcomes:
    """Two versions, with a labelled prediction each, and an outcome that waits for its sample."""
    outcomes = Outcomes(now)
    for key in (KEY, OTHER):
        outcomes.serve(key, settings_of(), None)
        outcomes.add([scored(["a", "b"], [0.9, 0.1], key=key)])
        outcomes.report(Outcome(key.model, 0, "a", 0, 1.0))
    assert outcomes.report(Outcome(KEY.model, 0, "early", 0, 1.0)).version == 0
    return outcomes


def test_a_version_goes_on_whenever_it_is_served_again(tmp_path: Path) -> None:
    now = Now()
    before = judged(now)
    file = OutcomesFile(tmp_path)
    assert file.save(before)
    for _ in range(2):  # a process that ends before the second version was served forgets nothing of it
        outcomes = Outcomes(now)
        file.restore(outcomes)
        assert outcomes.readings() == ()
        outcomes.serve(KEY, settings_of(), None)
        assert outcomes.readings() == before.readings()[:1]
        assert file.save(outcomes)
    outcomes.serve(OTHER, settings_of(), None)
    assert outcomes.readings() == before.readings()
    assert outcomes.counts() == before.counts()
    assert outcomes.report(Outcome(OTHER.model, 0, "a", 0, 1.0)).status == ReceiptStatus.DUPLICATE
    outcomes.add([scored(["early"], [0.5])])
    assert [reading.labelled for reading in outcomes.readings()] == [2, 1]


def test_what_is_judged_otherwise_by_then_begins_anew(tmp_path: Path) -> None:
    now = Now()
    file = OutcomesFile(tmp_path)
    file.save(judged(now))
    outcomes = Outcomes(now)
    file.restore(outcomes)
    outcomes.serve(KEY, settings_of(threshold=0.7), None)
    assert outcomes.readings() == ()


def test_versions_that_never_come_back_are_bounded(tmp_path: Path) -> None:
    now = Now()
    outcomes = Outcomes(now)
    for version in range(1, KEPT_PARTS + 6):
        key = VersionKey("m", version)
        outcomes.serve(key, settings_of(), None)
        outcomes.add([scored(["a"], [0.9], key=key)])
    file = OutcomesFile(tmp_path)
    file.save(outcomes)
    later = Outcomes(now)
    file.restore(later)
    for version in range(1, KEPT_PARTS + 6):
        later.serve(VersionKey("m", version), settings_of(), None)
    assert [reading.key.version for reading in later.readings()] == list(range(6, KEPT_PARTS + 6))


@pytest.mark.parametrize("damage", [b"", b"PK", b"\x00" * 100])
def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).write_bytes(damage)
    outcomes = Outcomes(Now())
    OutcomesFile(tmp_path).restore(outcomes)
    assert (tmp_path / f"{FILE}.unreadable").read_bytes() == damage
    assert not (tmp_path / FILE).exists()
    assert [record.message for record in caplog.records] == ["what is known of outcomes cannot be used"]


def test_a_part_that_is_damaged_costs_that_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = Now()
    file = OutcomesFile(tmp_path)
    file.save(judged(now))
    with np.load(tmp_path / FILE) as archive:
        arrays = dict(archive)
    broken = {name: array for name, array in arrays.items() if not name.startswith("0.series.")}
    np.savez(tmp_path / FILE, **broken)
    outcomes = Outcomes(now)
    file.restore(outcomes)
    for key in (KEY, OTHER):
        outcomes.serve(key, settings_of(), None)
    assert [reading.key for reading in outcomes.readings()] == [OTHER]
    assert [record.message for record in caplog.records] == ["what was known of outcomes is lost"]


def test_a_folder_that_refuses_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    file, outcomes = OutcomesFile(folder), Outcomes(Now())
    file.restore(outcomes)  # nothing is there yet
    assert file.save(outcomes)
    (folder / FILE).unlink()
    folder.rmdir()
    assert [file.save(outcomes), file.save(outcomes)] == [False, False]
    assert len(caplog.records) == 1
    folder.mkdir()
    (folder / FILE).mkdir()
    file.restore(outcomes)
    assert len(caplog.records) == 2
