"""What the figures of a run amount to: ratios, what is required of them, and the search for the highest rate. **Pure.**

R1  highest open-loop rate with p99 within its target and no error / raw engine rate
R2  closed-loop saturated rate / the same
R3  p99 at 80 % load / p99 of the ideal work-conserving queue with the measured tau
R5  p50 with one request in flight - the engine's time for one row
R6  answers in time per second at 120 % load / the raw engine rate

Load is in parts of the raw engine rate: what the device does without a server, copies included.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

OVERLOAD, TAIL_LOAD = 1.2, 0.8
REQUIRED: Mapping[str, tuple[str, float]] = {
    "r1": ("least", 0.90),
    "r2": ("least", 0.95),
    "r3": ("most", 1.25),
    "r5": ("most", 150.0),
    "r6": ("least", 0.95),
}
"""R5 in microseconds. Where only some models are held to a number, `required` of a plan says so."""


@dataclass(frozen=True)
class Probe:
    """One try of a rate. `passed`: p99 within target, every answer right and in time. `void`: the client was late itself."""

    load: float
    passed: bool
    void: bool
    report: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """The highest load that passed (None if none did), and all that was tried, in order."""

    load: float | None
    probes: tuple[Probe, ...]

    @property
    def void(self) -> bool:
        """Whether a try that decided something could not be judged."""
        return any(probe.void for probe in self.probes)


def passes(report: Mapping[str, Any], target_p99_us: float) -> bool:
    """Every request of an open loop was answered rightly, and 99 % of them within the target.

    >>> quiet = {"requests": 5, "settling": 1, "right": 4, "latency_us": {"p99": 900.0}}
    >>> passes(quiet, 1000.0), passes(quiet, 800.0), passes(quiet | {"right": 3}, 1000.0)
    (True, False, False)
    """
    counted = report["requests"] - report["settling"]
    return bool(counted > 0 and report["right"] == counted and report["latency_us"]["p99"] <= target_p99_us)


def highest_load(
    attempt: Callable[[float], Probe],
    may_repeat: Callable[[], bool],
    low: float = 0.5,
    high: float = 1.0,
    first: float = 0.9,
    tries: int = 6,
) -> Found:
    """Bisection between `low`, which is taken to pass if anything above it does, and `high`, which is taken to fail.

    Never answers `high`: more than the engine itself cannot be had, and a short try of it would say nothing. A void try is
    made once more where that may be; else it counts as failed, so that what is found is never more than was shown.
    """
    probes: list[Probe] = []
    best: float | None = None
    load = first
    for _ in range(tries):
        probe = attempt(load)
        if probe.void and may_repeat():
            probe = attempt(load)
        probes.append(probe)
        if probe.passed and not probe.void:
            best = low = load
        else:
            high = load
        load = (low + high) / 2
    return Found(best, tuple(probes))


def ratio(name: str, value: float | None, required: Mapping[str, float] | None = None) -> dict[str, Any]:
    """A ratio beside what is required of it. Without a value nothing is met; `required` replaces the common numbers.

    >>> ratio("r3", 1.2)
    {'ratio': 'r3', 'value': 1.2, 'most': 1.25, 'met': True}
    >>> ratio("r1", None)["met"], ratio("r2", 0.9, {})
    (False, {'ratio': 'r2', 'value': 0.9})
    """
    row: dict[str, Any] = {"ratio": name, "value": value}
    side, common = REQUIRED[name]
    bound = common if required is None else required.get(name)
    if bound is None:
        return row
    met = value is not None and (value >= bound if side == "least" else value <= bound)
    return row | {side: bound, "met": met}


COUNTS = (
    "requests",
    "right",
    "late",
    "wrong",
    "failed",
    "unanswered",
    "settling",
    "uncompared",
    "rate",
    "goodput",
    "cpu_s",
)
"""What a client counts, beside its percentiles."""


def merged(reports: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Clients that ran side by side, as one: what they counted is added, of percentiles the worst is taken."""
    total: dict[str, Any] = {name: sum(report[name] for report in reports) for name in COUNTS}
    for name in ("latency_us", "lateness_us"):
        total[name] = {key: max(report[name][key] for report in reports) for key in reports[0][name] if key != "count"}
        total[name]["count"] = sum(report[name]["count"] for report in reports)
    errors: dict[str, int] = {}
    for report in reports:
        for code, count in report["errors"].items():
            errors[code] = errors.get(code, 0) + count
    first = next((report["first_error"] for report in reports if report["first_error"]), "")
    void = any(report["void"] for report in reports)
    return total | {"errors": errors, "first_error": first, "void": void, "clients": len(reports)}
