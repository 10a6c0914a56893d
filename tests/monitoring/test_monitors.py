"""All monitors: who is served, whose rows are whose, and what outlives the process."""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.monitoring import monitors as monitors_module
from server.monitoring.monitors import Monitors
from server.monitoring.reading import VersionReading
from server.monitoring.samples import Samples
from server.monitoring.state_files import KEPT_S, file_name
from server.monitoring.verdict import DriftState, WindowVerdict
from tests.monitoring.monitored import HOUR_US, KEY, T0_US, answered, normal_baseline, normal_rows, settings

BASELINE, OTHER = normal_baseline(20_000, 3), normal_baseline(20_000, 3, seed=2)
FAR = T0_US + 1000 * HOUR_US
PLAIN = settings()


def monitors(folder: Path | None = None) -> Monitors:
    return Monitors(folder, lambda: FAR)


def only(made: Monitors) -> VersionReading:
    [reading] = made.versions()
    return reading


def rows(number: int, *, key: VersionKey = KEY, arm: str = "champion", count: int = 200) -> Samples:
    values = np.random.default_rng(number).normal(size=(count, 3)).astype(np.float32)
    return answered(np.full(count, T0_US + number * HOUR_US + 9), {"x": values}, key=key, arm=arm)


def test_silence_is_told_of_every_arm_that_is_served() -> None:
    made = monitors()
    made.serve(KEY, PLAIN, BASELINE, arms=("champion", "shadow"))
    assert made.tick(T0_US) == []
    told = made.tick(T0_US + 2 * HOUR_US)
    assert sorted((each.arm, each.state) for each in told) == [("champion", DriftState.NO_DATA), ("shadow", DriftState.NO_DATA)]
    made.serve(KEY, PLAIN, BASELINE, arms=("champion",))
    assert [each.arm for each in made.tick(T0_US + 3 * HOUR_US)] == ["champion"]
    made.add([rows(4, arm="shadow")])
    told = made.tick(T0_US + 6 * HOUR_US)
    assert sorted((each.arm, each.rows) for each in told if each.rows) == [("shadow", 200)]


def test_rows_go_to_their_version_and_arm_and_losses_too() -> None:
    made = monitors()
    second = VersionKey("fraud", 4)
    made.serve(KEY, PLAIN, BASELINE)
    made.serve(second, PLAIN, BASELINE, arms=("challenger",))
    made.add([rows(0), rows(0, key=second, arm="challenger"), rows(0)])
    made.count(second, "challenger", 50, 50, T0_US)
    made.count(VersionKey("gone", 1), "champion", 50, 50, T0_US)
    told = {each.key: each for each in made.tick(T0_US + 2 * HOUR_US)}
    assert {key: (each.rows, each.offered, each.dropped) for key, each in told.items()} == {
        KEY: (400, 400, 0),
        second: (200, 250, 50),
    }
    assert told[second].state == DriftState.DEGRADED


def test_rows_of_unknown_versions_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitors_module, "MAX_UNKNOWN", 2)
    made = monitors()
    made.add([rows(0, key=VersionKey("m", number), count=number) for number in (1, 2, 3, 4, 1)])
    assert made.unknown_rows() == {VersionKey("m", 1): 2, VersionKey("m", 2): 2, VersionKey("", 0): 7}
    assert made.versions() == ()


def test_arms_are_bounded() -> None:
    made = monitors()
    made.serve(KEY, PLAIN, None)
    made.add([rows(0, arm=f"arm{number}", count=1) for number in range(20)])
    assert len(made.versions()) == monitors_module.MAX_ARMS
    assert made.unknown_rows() == {KEY: 5}


def test_a_version_that_left_can_still_be_read_and_goes_on_when_it_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitors_module, "KEPT_VERSIONS", 2)
    made = monitors()
    made.leave(KEY)
    made.serve(KEY, PLAIN, BASELINE)
    made.add([rows(0)])
    [verdict] = made.tick(T0_US + 2 * HOUR_US - 1)
    made.leave(KEY)
    assert only(made).windows == (verdict,)
    assert made.tick(T0_US + 9 * HOUR_US) == []
    made.add([rows(8)])
    assert made.unknown_rows() == {KEY: 200}
    made.serve(KEY, PLAIN, BASELINE)
    assert only(made).windows == (verdict,)
    for version in (10, 11, 12):
        made.serve(VersionKey("m", version), PLAIN, BASELINE)
        made.leave(VersionKey("m", version))
    assert [each.key.version for each in made.versions()] == [3, 12, 11]


@pytest.mark.parametrize(
    ("first", "then", "says"),
    [
        ((PLAIN, BASELINE), (PLAIN, OTHER), "baseline"),
        ((PLAIN, BASELINE), (PLAIN, None), "baseline"),
        ((PLAIN, None), (PLAIN, BASELINE), "baseline"),
        ((PLAIN, BASELINE), (settings(tolerance=0.2), BASELINE), "settings"),
        ((PLAIN, BASELINE), (settings(target_rows=7), BASELINE), ""),
        ((PLAIN, None), (settings(max_rate=0.5), None), ""),
    ],
)
def test_what_is_judged_by_something_else_begins_anew(
    first: tuple[ModelSettings, None], then: tuple[ModelSettings, None], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = monitors()
    made.serve(KEY, *first)
    made.add([rows(0)])
    made.tick(T0_US + 2 * HOUR_US - 1)
    before = only(made)
    with caplog.at_level(logging.WARNING, "podium.monitoring"):
        made.serve(KEY, *then)
    assert [vars(each)["changed"] for each in caplog.records] == [says] * bool(says)
    after = only(made)
    assert (after == before) == (not says)
    assert after.baseline is then[1]
    if says:
        assert (after.windows, after.learned_rows, after.open_rows) == ((), 0, 0)


def test_what_was_learnt_is_kept_when_settings_change() -> None:
    made = monitors()
    made.serve(KEY, settings(learning_rows=1000), None)
    made.add([rows(0, count=900)])
    made.serve(KEY, settings(learning_rows=1000, window_s=60), None)
    assert (only(made).state, only(made).learned_rows) == (DriftState.LEARNING, 900)
    made.add([rows(0, count=900)])
    learnt = only(made).baseline
    assert learnt is not None
    assert learnt.rows == 1800
    made.serve(KEY, settings(learning_rows=1000, window_s=120), None)
    assert (only(made).state, only(made).baseline) == (DriftState.NO_DATA, learnt)
    made.add([rows(1)])
    assert [each.end_us - each.start_us for each in made.tick(T0_US + HOUR_US + 240_000_000)] == [120_000_000]


def test_what_is_learnt_and_what_is_not_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    made = monitors()
    made.serve(KEY, settings(learning_rows=1000), None)
    made.serve(VersionKey("m", 1), settings(learning_rows=1000, ignore=["x"]), None)
    with caplog.at_level(logging.INFO, "podium.monitoring"):
        made.add([rows(0, count=1000), rows(0, key=VersionKey("m", 1), count=1000)])
        made.add([normal_rows(T0_US, 1000, 3, seed=1, shift=1.0)])
        made.tick(T0_US + 2 * HOUR_US)
    assert [each.message for each in caplog.records] == ["a baseline was learnt", "there is nothing to monitor", "drift"]


def scenario() -> list[tuple[int, list[Samples]]]:
    """Instants, and rows that have come by then: late ones, small windows, a gap, a shift, two arms."""
    generator = np.random.default_rng(5)
    made = []
    for number in range(60):
        at = T0_US + number * HOUR_US // 4
        count = 0 if 20 <= number < 30 else int(generator.integers(5, 200))
        times = at - generator.integers(0, HOUR_US // 60 * 40, count)
        values = generator.normal(size=(count, 3)).astype(np.float32) + 1.0 * (number > 40)
        values[generator.random((count, 3)) < 0.02] = np.nan
        arms = generator.random(count) < 0.8
        pieces = [answered(times[own], {"x": values[own]}, arm=arm) for arm, own in (("champion", arms), ("shadow", ~arms))]
        made.append((at, [piece for piece in pieces if piece.rows]))
    return made


def run(made: Monitors, steps: Sequence[tuple[int, list[Samples]]]) -> list[WindowVerdict]:
    told = []
    for at, pieces in steps:
        made.add(pieces)
        made.count(KEY, "champion", 1, 1, at)
        told += made.tick(at)
    return told


@pytest.mark.parametrize("baseline", [BASELINE, None], ids=["registered", "learnt"])
@pytest.mark.parametrize("by_rows", [False, True], ids=["clock", "rows"])
def test_stopping_anywhere_and_going_on_changes_no_bit(tmp_path: Path, by_rows: bool, baseline: None) -> None:
    chosen = settings(grace_s=600, time_input="at" if by_rows else "", learning_rows=1000)
    steps = scenario()
    straight = monitors()
    straight.serve(KEY, chosen, baseline)
    expected = run(straight, steps)
    assert {each.state for each in expected} >= {DriftState.ALARM, DriftState.NO_DATA}
    for cut in sorted(np.random.default_rng(9).choice(len(steps), 6, replace=False).tolist()):
        folder = tmp_path / str(cut)
        before = monitors(folder)
        before.serve(KEY, chosen, baseline)
        told = run(before, steps[:cut])
        assert before.save(f"entry-{cut}")
        after = monitors(folder)
        assert after.versions() == ()
        after.serve(KEY, chosen, baseline)
        assert after.positions() == {KEY: f"entry-{cut}"}
        told += run(after, steps[cut:])
        assert told == expected
        # of what is learnt the digest stands for the baseline, whose arrays have no truth value
        assert [without_baseline(each) for each in after.versions()] == [without_baseline(each) for each in straight.versions()]


def without_baseline(reading: VersionReading) -> tuple[object, ...]:
    digest = reading.baseline.digest if reading.baseline else ""
    return (
        *(reading.arm, reading.state, reading.windows, reading.open_rows, reading.learned_rows, reading.late_rows),
        *(reading.alarms, reading.last_alarm, digest),
    )


def saved(folder: Path) -> Path:
    made = monitors(folder)
    made.serve(KEY, PLAIN, BASELINE)
    run(made, scenario())
    assert made.save("7-0")
    [path] = folder.iterdir()
    return path


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "other", "empty"])
def test_files_that_cannot_be_used_are_set_aside(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = saved(tmp_path)
    data = path.read_bytes()
    path.write_bytes(
        {
            "cut": data[:-3],
            "flipped": data[:500] + bytes([data[500] ^ 1]) + data[501:],
            "foreign": b"\x89PNG" + data[4:],
            "other": data,
            "empty": b"",
        }[damage]
    )
    key = KEY
    if damage == "other":
        key = VersionKey("fraud", 9)
        path.rename(tmp_path / file_name(key))
    made = monitors(tmp_path)
    caplog.clear()
    made.serve(key, PLAIN, BASELINE)
    assert [each.message for each in caplog.records] == ["what a monitor remembers cannot be used"]
    assert (only(made).windows, made.positions()) == ((), {key: ""})
    assert [each.name for each in tmp_path.iterdir()] == [file_name(key) + ".unreadable"]


def test_a_saved_version_with_another_baseline_begins_anew(tmp_path: Path) -> None:
    saved(tmp_path)
    made = monitors(tmp_path)
    made.serve(KEY, PLAIN, OTHER)
    assert only(made).windows == ()


def test_a_folder_that_refuses_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "state"
    made = monitors(folder)
    made.serve(KEY, PLAIN, BASELINE)
    folder.rmdir()
    assert [made.save(), made.save()] == [False, False]
    folder.mkdir()
    assert made.save()
    assert [each.message for each in caplog.records] == ["what monitors remember cannot be kept"]
    (folder / file_name(KEY)).unlink()
    (folder / file_name(KEY)).mkdir()
    other = monitors(folder)
    other.serve(KEY, PLAIN, BASELINE)
    assert caplog.records[-1].message == "what a monitor remembers cannot be read"


def test_left_over_and_old_files_are_removed(tmp_path: Path) -> None:
    path = saved(tmp_path)
    half = tmp_path / f".{path.name}-0123"
    half.write_bytes(b"x")
    stranger = tmp_path / "notes.txt"
    stranger.write_text("kept")
    Monitors(tmp_path, lambda: round((path.stat().st_mtime + KEPT_S - 60) * 1e6))
    assert sorted(tmp_path.iterdir()) == sorted([path, stranger])
    Monitors(tmp_path, lambda: round((path.stat().st_mtime + KEPT_S + 60) * 1e6))
    assert list(tmp_path.iterdir()) == [stranger]


def test_without_a_folder_nothing_is_kept() -> None:
    made = monitors()
    made.serve(KEY, PLAIN, BASELINE)
    assert not made.save("7-0")


def test_names_of_models_are_no_paths() -> None:
    names = {file_name(VersionKey(model, 1)) for model in ("a/b", "a-b", "../../etc", "ä", "a" * 500, "")}
    assert len(names) == 6
    assert not any("/" in name or name.startswith(".") or len(name) > 120 for name in names)


def test_many_threads_lose_nothing(tmp_path: Path) -> None:
    made = monitors(tmp_path)
    made.serve(KEY, PLAIN, BASELINE)
    told: list[WindowVerdict] = []

    def add() -> None:
        for number in range(20):
            made.add([rows(number)])

    def others() -> None:
        for _ in range(20):
            made.versions()
            made.save("1")

    threads = [threading.Thread(target=target) for target in (add, add, add, others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = made.tick(T0_US + 30 * HOUR_US)
    assert [each.rows for each in told if each.rows] == [600] * 20
