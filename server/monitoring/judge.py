"""One window's counts against a baseline's: findings, detectors, a verdict. **Pure.**

Floor 4. Every check of every stream has a p-value against a shift that is tolerated, an e-value made of it, and a
Shiryaev-Roberts detector. The weighted mean of all detectors is the family's; an alarm is raised when it reaches A,
`alarm_every_windows`: without a shift beyond the tolerated one, A windows pass on average before the first, whatever the
weights. One detector of weight w reaches that alone at A / w.

An alarm names the largest detectors, as few as leave the mean of the others below A, and these begin anew: so the next window
does not repeat it for what has been said. The alarm lasts, as a state, while any check that it named finds more evidence for a
harmful shift than against one (e > 1); it is raised again, and counted again, only by a detector that has reached A / w anew.

A check without enough to go by is not made: p = 1, e = 1, and its detector stays. (A detector that is fed e = 1 grows by one a
window, and would raise an alarm about nothing after A of them.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import log
from typing import Literal

from server.core.monitoring_settings import ModelMonitoring
from server.core.versions import VersionKey
from server.monitoring.baseline import Baseline
from server.monitoring.baseline_document import edges_digest
from server.monitoring.build import reference as compared_with
from server.monitoring.checks import Harmless, Place, compare, places
from server.monitoring.streams import Counts
from server.monitoring.verdict import DriftState, Finding, WindowVerdict
from server.monitoring.windows import Closed
from server.statistics.detector import EMPTY, e_value, family, step
from server.statistics.evidence import Evidence

DISTRIBUTIONS = 0.8
"""What distributions have of all weight, where there are rates as well."""
DEGRADED_ABOVE = 0.01
"""Share of the chosen rows of a window that may be lost."""


@dataclass(frozen=True, slots=True)
class Detectors:
    """What is remembered between windows. `logs`: of each check, in the order of `Reference.places`; `lasting`: the places of
    checks that the last alarm named, while it lasts.
    """

    logs: tuple[float, ...]
    lasting: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reference:
    """A baseline and what is tolerated: everything that windows are judged by."""

    baseline: Baseline
    tolerance: float
    alarm_every_windows: int

    @classmethod
    def of(cls, baseline: Baseline, settings: ModelMonitoring) -> "Reference":
        """By a model's settings."""
        return cls(baseline, settings.tolerance, settings.alarm_every_windows)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """All checks, in order."""
        return places(self.baseline.layout, self.baseline.counts)

    @cached_property
    def edges_digest(self) -> str:
        """SHA-256 of the frozen bins."""
        return edges_digest(self.baseline.layout)

    def varying(self, place: Place) -> float:
        """What the windows of the baseline itself differ by, in one check."""
        baseline = self.baseline
        if place.check != "distribution":
            return baseline.rate_variation.get(str(place), 0.0)
        return baseline.variation[place.index] if baseline.variation else 0.0

    @property
    def log_family_threshold(self) -> float:
        """ln A."""
        return log(self.alarm_every_windows)

    @cached_property
    def weights(self) -> tuple[float, ...]:
        """Of each check, 1 together. Rates are three checks of a stream and its distribution is one: with a say alike, what is
        looked for most would be found latest."""
        shapes = sum(place.check == "distribution" for place in self.places)
        rates = len(self.places) - shapes
        if not shapes or not rates:
            return (1 / len(self.places),) * len(self.places)
        return tuple(
            DISTRIBUTIONS / shapes if place.check == "distribution" else (1 - DISTRIBUTIONS) / rates for place in self.places
        )

    @cached_property
    def log_thresholds(self) -> tuple[float, ...]:
        """ln(A / w): of each detector alone."""
        return tuple(self.log_family_threshold - log(weight) for weight in self.weights)

    @property
    def fresh(self) -> Detectors:
        """Nothing has been judged."""
        return Detectors((EMPTY,) * len(self.places))


def judge(
    key: VersionKey, arm: str, window: Closed, reference: Reference, detectors: Detectors
) -> tuple[WindowVerdict, Detectors]:
    """The verdict on one window, and the detectors after it.

    A window without rows is NO_DATA, and leaves the detectors as they are.
    """
    findings: tuple[Finding, ...] = ()
    named: tuple[int, ...] = ()
    log_family = family(detectors.logs, reference.weights)
    kind: Literal["all", "hours_of_week"] = "all"
    state, after = DriftState.NO_DATA, detectors
    if window.counts is not None:
        counts, kind = compared_with(reference.baseline, window.start_us, window.end_us)
        # an hour of the week is met again only after a week: its error is not added up
        findings = tuple(_findings(reference, counts, kind == "all", window.counts, detectors))
        logs = [finding.log_detector for finding in findings]
        log_family = family(logs, reference.weights)
        named = _named(logs, reference)
        lasting = tuple(place for place in detectors.lasting if findings[place].e > 1)
        after = Detectors(tuple(EMPTY if place in named else each for place, each in enumerate(logs)), named or lasting)
        degraded = window.dropped > DEGRADED_ABOVE * window.offered
        calm = DriftState.DEGRADED if degraded else DriftState.OK
        state = DriftState.ALARM if after.lasting else calm
    verdict = WindowVerdict(
        key=key,
        arm=arm,
        start_us=window.start_us,
        end_us=window.end_us,
        rows=window.rows,
        offered=window.offered,
        dropped=window.dropped,
        state=state,
        findings=findings,
        log_family=log_family,
        log_threshold=reference.log_family_threshold,
        detectors=len(reference.places),
        baseline_digest=reference.baseline.digest,
        baseline_origin=reference.baseline.origin,
        edges_digest=reference.edges_digest,
        reference=kind,
        tolerance=reference.tolerance,
        alarmed=tuple(str(reference.places[place]) for place in named),
    )
    return verdict, after


def _named(logs: list[float], reference: Reference) -> tuple[int, ...]:
    """The detectors that have most of the mean, as few as leave the family below its threshold."""
    left, named, own = list(logs), [], reference.log_thresholds
    for place in sorted(range(len(logs)), key=lambda place: (own[place] - logs[place], place)):
        if family(left, reference.weights) < reference.log_family_threshold:
            break
        left[place] = EMPTY
        named.append(place)
    return tuple(named)


def _findings(reference: Reference, counts: Counts, lasting: bool, window: Counts, detectors: Detectors) -> Iterator[Finding]:
    layout = reference.baseline.layout
    cells = [(layout.cells(counts, index), layout.cells(window, index)) for index, _ in layout]
    for place, before, threshold in zip(reference.places, detectors.logs, reference.log_thresholds, strict=True):
        own, now = cells[place.index]
        harmless = Harmless(reference.tolerance, lasting, reference.varying(place) if lasting else 0.0)
        compared = compare(place, own, now, harmless)
        evidence = compared.evidence or Evidence(0.0, 0, 0.0, 1.0)
        e = 1.0 if compared.evidence is None else e_value(evidence.p)
        after = before if compared.evidence is None else step(before, e)
        yield Finding(
            stream=place.stream.name,
            check=place.check,
            baseline=compared.baseline,
            window=compared.window,
            n=compared.n,
            m=compared.m,
            effect=compared.effect,
            tolerated=compared.tolerated,
            statistic=evidence.statistic,
            df=evidence.df,
            noncentrality=evidence.noncentrality,
            p=evidence.p,
            e=e,
            log_detector=after,
            log_threshold=threshold,
            alarm=after >= threshold,
            effects=compared.effects,
        )
