"""`python -m bench.drift [--quick] [--without-peers] [--out FOLDER]`: play, compare, print, and write drift.json.

Everything is seeded, so a second run gives the same numbers, times excepted.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.drift import ours
from bench.drift.calibration import calibration
from bench.drift.dummies import dummies
from bench.drift.install import PEERS, missing
from bench.drift.others import ask
from bench.drift.playing import Detector, outlier, play
from bench.drift.report import summary, tables
from bench.drift.scoring import best, required, rows_of
from bench.drift.streams import (
    BASELINE_ROWS,
    DAY,
    FEATURES,
    MISSING_AFTER,
    MISSING_RATIO,
    NEW_RATIO,
    OUTLIER,
    SHIFT_SD,
    WINDOWS,
    WOBBLE_SD,
    Kind,
)
from bench.record import RESULTS, machine, write

CASES: tuple[tuple[Kind, int], ...] = (
    ("numbers", 200),
    ("numbers", 1000),
    ("numbers", 10_000),
    ("categories", 1000),
    ("missing", 1000),
)
SEED = 1


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is played. `windows`, `repeats`, `wait`: as of `playing.play`."""

    windows: int
    repeats: int
    wait: int


OURS = Extent(WINDOWS, 20, 2 * DAY)
OTHERS = {
    # 2.6 s a window, of which it remembers nothing; so two days show the wobble whole
    "Evidently": Extent(2 * DAY, 2, 8),
    "NannyML": Extent(WINDOWS, 5, DAY),
    # 0.6 s a window
    "alibi-detect": Extent(7 * DAY, 5, 2 * DAY),
}
QUICK = Extent(6, 1, 3)
_LIMIT_S = 3600.0
_RATES, _QUICK_RATES = 10_000, 200
_QUICK_BASELINE = 20_000


def measure(*, quick: bool, peers: bool) -> dict[str, Any]:
    """Everything but the machine."""
    baseline = _QUICK_BASELINE if quick else BASELINE_ROWS
    rows, outliers, others = [], [], []
    extent = QUICK if quick else OURS
    for kind, size in CASES:
        case = _case(kind, size, extent, baseline)
        detectors: Sequence[Detector] = [ours.Detector(), *dummies(SEED)]
        for detector in detectors:
            rows += rows_of(detector.name, case, asdict(play(detector, case)))
    for case in _outlier_cases(baseline, extent):
        outliers.append({"detector": ours.Detector.name, **outlier(ours.Detector(), case)})
    for peer in PEERS if peers else ():
        own = QUICK if quick else OTHERS[peer.name]
        played = [_case(kind, size, own, baseline) for kind, size in CASES]
        asked = [*played, *_outlier_cases(baseline, extent)]
        facts, answers = ask(peer, asked, _LIMIT_S)
        others.append(facts)
        if not missing(peer):
            for case, answer in zip(asked, answers, strict=True):
                if case["what"] == "play":
                    rows += rows_of(peer.name, case, answer)
                else:
                    outliers.append({"detector": peer.name, "rows": case["scenario"]["rows"]} | answer)
    rates = calibration(_QUICK_RATES if quick else _RATES, SEED)
    return {
        "quick": quick,
        "streams": {
            "seed": SEED,
            "features": FEATURES,
            "baseline_rows": baseline,
            "wobble_sd": WOBBLE_SD,
            "shift_sd": SHIFT_SD,
            "new_category_ratio": NEW_RATIO,
            "missing_ratio": [MISSING_RATIO, MISSING_AFTER],
            "outlier": OUTLIER,
        },
        "peers": others,
        "rows": rows,
        "outliers": outliers,
        "calibration": rates,
        "best": best(rows),
        "required": required(rows, outliers, rates, ours.DATASET),
    }


def _case(kind: Kind, size: int, extent: Extent, baseline: int) -> dict[str, Any]:
    scenario = {"kind": kind, "rows": size, "seed": SEED}
    return {"what": "play", "scenario": scenario, "baseline_rows": baseline} | asdict(extent)


def _outlier_cases(baseline: int, extent: Extent) -> list[dict[str, Any]]:
    """As many windows as there are repetitions of a change."""
    scenarios = [{"kind": "numbers", "rows": size, "seed": SEED} for size in (200, 1000, 10_000)]
    same = {"baseline_rows": baseline, "windows": extent.repeats}
    return [{"what": "outlier", "scenario": scenario, **same} for scenario in scenarios]


def main(arguments: Sequence[str] = ()) -> int:
    """The exit status is 1 if ours misses what it must reach, and 0 of a quick run, which shows nothing but that it runs."""
    parser = argparse.ArgumentParser(prog="python -m bench.drift", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few windows and a small baseline: to see that it runs")
    parser.add_argument("--without-peers", action="store_true", help="ours and dummies only")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where drift.json is written (default: %(default)s)")
    options = parser.parse_args(arguments)
    facts, began = machine(), time.perf_counter()
    result = measure(quick=options.quick, peers=not options.without_peers)
    path = write("drift", {"machine": facts, "seconds": round(time.perf_counter() - began), **result}, options.out)
    print("\n".join([*tables(result), "", *summary(result), f"written to {path}"]))
    return 0 if options.quick else int(not all(row["met"] for row in result["required"]))
