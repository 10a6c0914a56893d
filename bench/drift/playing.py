"""Playing streams to detectors: the same for ours, others' and dummies. Numpy alone, as peers run it too.

A detector has one or more *rules* that say from its findings whether a window is an alarm; each is scored by itself.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from bench.drift.streams import DAY, Scenario, Table, baseline, digest, window, with_outlier


@dataclass(frozen=True, slots=True)
class Seen:
    """What a detector said of one window: by rule, whether it is an alarm, and how many columns it named."""

    alarms: Mapping[str, bool]
    columns: int = 0


class Detector(Protocol):
    """What is played to. `memory`: what it says of a window depends on those before. `blind`: it never looks at rows.
    `at_once`: how many windows it takes together, where that is cheaper.
    """

    name: str
    rules: Sequence[str]
    memory: bool
    blind: bool
    at_once: int

    def fit(self, rows: Table, window_rows: int) -> None:
        """Begin anew with this baseline, for windows of so many rows."""
        ...

    def see(self, first: int, windows: Sequence[Table]) -> list[Seen]:
        """What it says of consecutive windows, the first of them with this index."""
        ...

    def effect(self, rows: Table) -> float:
        """Its measure of how far the first column of numbers is from the baseline; it says nothing of alarms."""
        ...


@dataclass
class Played:
    """What came of one case. `alarms`: by rule, the windows without change that were alarms, of `windows`. `columns`: columns
    named in them, all together. `delays`: by rule, for each repetition, windows until the alarm, the first that has the change
    being 1; None where it was missed. `early`: alarms before the change. `digests`: of rows that were judged.
    """

    windows: int
    alarms: dict[str, list[int]]
    columns: int = 0
    delays: dict[str, list[int | None]] = field(default_factory=dict)
    early: dict[str, int] = field(default_factory=dict)
    waited: int = 0
    seconds: float = 0.0
    digests: list[str] = field(default_factory=list)


_EMPTY = Table(np.empty((0, 0), np.float32), np.empty((0, 0), np.int64))


def play(detector: Detector, case: Mapping[str, Any]) -> Played:
    """A case: `scenario` without change for `windows`, then `repeats` times with one, for at most `wait` windows."""
    began = time.perf_counter()
    quiet = Scenario(**case["scenario"])
    detector.fit(_EMPTY if detector.blind else baseline(quiet, case["baseline_rows"]), quiet.rows)
    played = Played(case["windows"], {rule: [] for rule in detector.rules}, waited=case["wait"])
    for index, seen in enumerate(_shown(detector, quiet, range(case["windows"]), played)):
        played.columns += seen.columns
        for rule, alarm in seen.alarms.items():
            played.alarms[rule] += [index] if alarm else []
    for rule in detector.rules:
        played.delays[rule], played.early[rule] = [], 0
    for repeat in range(case["repeats"]):
        _wait(detector, quiet, repeat, case, played)
    played.seconds = time.perf_counter() - began
    return played


def change_of(repeat: int) -> int:
    """In which window the change of a repetition comes: at least a day after the beginning, at every time of the day."""
    return DAY + (repeat * 7) % DAY


def _wait(detector: Detector, quiet: Scenario, repeat: int, case: Mapping[str, Any], played: Played) -> None:
    """One repetition: other windows than the quiet ones, the same baseline."""
    at = change_of(repeat)
    scenario = replace(quiet, seed=quiet.seed + 1000 + repeat, change_at=at)
    if detector.memory:
        detector.fit(_EMPTY if detector.blind else baseline(quiet, case["baseline_rows"]), quiet.rows)
    found: dict[str, int] = {}
    first = at - DAY if detector.memory else at
    for index, seen in enumerate(_shown(detector, scenario, range(first, at + case["wait"]), played), first):
        for rule, alarm in seen.alarms.items():
            if alarm and index < at:
                played.early[rule] += 1
            elif alarm:
                found.setdefault(rule, index - at + 1)
        if len(found) == len(detector.rules):
            break
    for rule in detector.rules:
        played.delays[rule].append(found.get(rule))


def _shown(detector: Detector, scenario: Scenario, indices: range, played: Played) -> Iterator[Seen]:
    for start in range(0, len(indices), detector.at_once):
        group = indices[start : start + detector.at_once]
        windows = [_EMPTY if detector.blind else window(scenario, index) for index in group]
        if not start and not detector.blind:
            played.digests.append(digest(windows[0]))
        yield from detector.see(group[0], windows)


def outlier(detector: Detector, case: Mapping[str, Any]) -> dict[str, Any]:
    """What one outlier does to the measure of a column that has changed, in per cent of it: means over windows, since in a
    small window the measure itself is noise.
    """
    scenario = replace(Scenario(**case["scenario"]), change_at=0)
    detector.fit(baseline(scenario, case["baseline_rows"]), scenario.rows)
    effects = []
    for index in range(case["windows"]):
        rows = window(scenario, index)
        effects.append((detector.effect(rows), detector.effect(with_outlier(rows))))
    without, with_it = np.mean(effects, axis=0).tolist()
    return {
        "rows": scenario.rows,
        "windows": len(effects),
        "effect": without,
        "effect_with_outlier": with_it,
        "change_percent": 100 * abs(with_it - without) / abs(without) if without else None,
    }
