"""Whether a model should ask to be trained again, and why. **Pure.**

Floor 4. All that is remembered is in a `Watch`, which outlives the process. After an event a model is silent for its cool-down,
and as long as that event has not reached everybody it is for: a model that drifts does not ask every hour.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from server.core.clock import US_PER_S
from server.core.monitoring_settings import ModelMonitoring, QualitySettings
from server.core.versions import VersionKey
from server.monitoring.events import Cause, Event, event
from server.monitoring.verdict import DriftState, Finding, Metric, QualityReading, WindowVerdict

_NAMED = 20
"""Features that an event describes; an alarm names few, and one that names many says no more by all of them."""


@dataclass(frozen=True, slots=True)
class Rise:
    """How the evidence against one check has added up: the sum of log e since it was 0, and the window it was 0 before.

    Where such a sum leaves 0 for good is the usual estimate of when a change began (Page 1954).
    """

    score: float
    since_us: int


@dataclass(frozen=True, slots=True)
class Watch:
    """What is remembered of one model. Units: microseconds since 1970.

    `since_us`: when it was first served here. `asked_us`: when it last asked, 0 never. `labelled`: rows with outcomes by
    version and arm, as last read; `new_rows` of them came since it last asked. `rises`: by version and arm, then by check.
    """

    since_us: int
    asked_us: int = 0
    new_rows: int = 0
    labelled: Mapping[str, int] = field(default_factory=dict)
    rises: Mapping[str, Mapping[str, Rise]] = field(default_factory=dict)

    @property
    def last_us(self) -> int:
        """When it last asked, or was first served."""
        return max(self.asked_us, self.since_us)


def noted(watch: Watch, verdicts: Sequence[WindowVerdict], qualities: Sequence[QualityReading]) -> Watch:
    """What is remembered after these verdicts, oldest first, and readings of one model."""
    rises, labelled, new_rows = dict(watch.rises), dict(watch.labelled), watch.new_rows
    for verdict in verdicts:
        place = _place(verdict.key, verdict.arm)
        risen = dict(rises.get(place, {}))
        for finding in verdict.findings:
            name = f"{finding.stream}:{finding.check}"
            before = risen.pop(name, Rise(0.0, verdict.start_us))
            score = before.score + (math.log(finding.e) if finding.e > 0 else -math.inf)
            if score > 0:
                # no higher than an alarm needs: how long it lasted says nothing about when the next one begins
                since_us = before.since_us if before.score > 0 else verdict.start_us
                risen[name] = Rise(min(score, max(finding.log_threshold, 1.0)), since_us)
        rises[place] = risen
    for reading in qualities:
        place = _place(reading.key, reading.arm)
        known = labelled.get(place, 0)
        # fewer than before: what was known of outcomes did not outlive a process, or was another load's
        new_rows += reading.labelled - known if reading.labelled >= known else reading.labelled
        labelled[place] = reading.labelled
    return replace(watch, rises=rises, labelled=labelled, new_rows=new_rows)


def asked(watch: Watch, time_us: int) -> Watch:
    """What is remembered once an event was raised, and kept where it cannot be lost."""
    return watch if time_us < watch.asked_us else replace(watch, asked_us=time_us, new_rows=0)


def without(watch: Watch, key: VersionKey) -> Watch:
    """What is remembered once a version has left service."""
    places = [place for place in {*watch.rises, *watch.labelled} if place.startswith(f"{key.version}/")]
    return replace(
        watch,
        rises={place: risen for place, risen in watch.rises.items() if place not in places},
        labelled={place: rows for place, rows in watch.labelled.items() if place not in places},
    )


def due(
    watch: Watch,
    settings: ModelMonitoring,
    newest: VersionKey,
    verdicts: Sequence[WindowVerdict],
    qualities: Sequence[QualityReading],
    now_us: int,
    *,
    is_open: bool,
) -> Event | None:
    """The event that one model should raise now; None where there is no reason to, or it is too early.

    `watch`: after these verdicts and readings were `noted`. `newest`: the version that is meant where no version is at fault.
    `is_open`: an earlier event has not reached everybody yet.
    """
    retrain, quality = settings.retrain, settings.quality
    horizon_s = 0.0 if quality is None else quality.horizon_s
    cool_us = round(max(retrain.cool_down_s, horizon_s) * US_PER_S)
    if is_open or (watch.asked_us and now_us < watch.asked_us + cool_us):
        return None
    causes: list[Cause] = []
    if "quality" in retrain.on and quality is not None:
        causes += _of_quality(watch, settings, quality, qualities, now_us)
    if "drift" in retrain.on:
        causes += [_of_drift(watch, verdict) for verdict in verdicts if verdict.state is DriftState.ALARM]
    every_us = round(retrain.every_s * US_PER_S)
    if "schedule" in retrain.on and every_us and now_us >= watch.last_us + every_us:
        start_us = now_us - now_us % every_us  # the same on all replicas
        said = f"the last one was asked for, or the model first served, {retrain.every_s:g} s ago"
        causes.append(Cause("schedule", newest, "", said, start_us, start_us + every_us, watch.last_us))
    if "new_data" in retrain.on and retrain.new_rows and watch.new_rows >= retrain.new_rows:
        said = f"{watch.new_rows} rows with outcomes have come, and {retrain.new_rows} are enough"
        facts = {"rows": watch.new_rows, "enough_rows": retrain.new_rows}
        causes.append(Cause("new_data", newest, "", said, watch.last_us, now_us, watch.last_us, facts))
    return event(causes, now_us) if causes else None


def _place(key: VersionKey, arm: str) -> str:
    return f"{key.version}/{arm}"


def _of_drift(watch: Watch, verdict: WindowVerdict) -> Cause:
    """An alarm lasts while what it named is suspicious: later windows of it may name nothing new."""
    ranked = sorted(verdict.findings, key=lambda each: each.log_detector, reverse=True)
    by_name = {f"{each.stream}:{each.check}": each for each in ranked}
    names = list(verdict.alarmed) or [name for name, each in by_name.items() if each.alarm] or list(by_name)[:1]
    rises = watch.rises.get(_place(verdict.key, verdict.arm), {})
    began_us = min([rises[name].since_us for name in names if name in rises], default=verdict.start_us)
    facts = {
        "features": [_told(name, by_name.get(name), rises.get(name)) for name in names[:_NAMED]],
        "features_named": len(names),
        "rows": verdict.rows,
        "log_family": verdict.log_family,
        "log_threshold": verdict.log_threshold,
        "detectors": verdict.detectors,
        "baseline": {"digest": verdict.baseline_digest, "origin": verdict.baseline_origin, "reference": verdict.reference},
        "edges_digest": verdict.edges_digest,
    }
    said = f"drift alarm of {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
    return Cause("drift", verdict.key, verdict.arm, said, verdict.start_us, verdict.end_us, began_us, facts)


def _told(name: str, finding: Finding | None, rise: Rise | None) -> dict[str, object]:
    """One feature of an alarm, with the counts that its effect can be computed again from."""
    told: dict[str, object] = {"name": name.rpartition(":")[0], "check": name.rpartition(":")[2]}
    if finding is not None:
        for number in ("effect", "tolerated", "e", "p", "n", "m", "log_detector", "log_threshold", "baseline", "window"):
            told[number] = getattr(finding, number)
    if rise is not None:
        told["since_us"] = rise.since_us
    return told


def _of_quality(
    watch: Watch, settings: ModelMonitoring, quality: QualitySettings, qualities: Sequence[QualityReading], now_us: int
) -> list[Cause]:
    """Harm, and objectives that are missed for sure: by the bound of a confidence interval, not by an estimate."""
    width_us = round(settings.window_s * US_PER_S)
    found = []
    for reading in qualities:
        start_us = reading.recent_start_us or now_us - now_us % width_us
        end_us = start_us + width_us
        facts = {"quality": {"served": reading.served, "labelled": reading.labelled, "recent": _metrics(reading.recent)}}
        facts["quality"]["realised"] = _metrics(reading.realised)
        risk = reading.risk
        if risk is not None:
            names = ("loss_mean", "loss_low", "bound", "rows", "log_detector", "log_threshold", "alarm")
            facts["quality"]["risk"] = {name: getattr(risk, name) for name in names}
        if risk is not None and risk.alarm:
            said = f"harm: the mean loss of {risk.rows} rows is {risk.loss_mean:.4g}, and {risk.bound:.4g} is tolerated"
            found.append(Cause("quality", reading.key, reading.arm, said, start_us, end_us, start_us, facts))
        for of_what, metrics, from_us in (
            ("the last window", reading.recent, start_us),
            ("all rows", reading.realised, watch.last_us),
        ):
            missed = None if quality.objective not in metrics else _missed(quality, metrics[quality.objective], of_what)
            if missed is not None:
                facts = facts | {"objective": missed}
                said = str(missed["said"])
                found.append(Cause("quality", reading.key, reading.arm, said, start_us, end_us, from_us, facts))
    return found


def _missed(quality: QualitySettings, metric: Metric, of_what: str) -> dict[str, object] | None:
    """How an objective is missed by the favourable bound of its metric; None where it may be met yet."""
    low, high = quality.at_least, quality.at_most
    if low is not None and metric.high < low:
        said = f"{quality.objective} of {of_what} is at most {metric.high:.4g}, and must be at least {low:g}"
    elif high is not None and metric.low > high:
        said = f"{quality.objective} of {of_what} is at least {metric.low:.4g}, and must be at most {high:g}"
    else:
        return None
    return {"said": said, "name": quality.objective, "of": of_what, "at_least": low, "at_most": high}


def _metrics(metrics: Mapping[str, Metric]) -> dict[str, object]:
    return {
        name: {"value": each.value, "low": each.low, "high": each.high, "rows": each.rows} for name, each in metrics.items()
    }
