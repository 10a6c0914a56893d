"""What a server monitors of itself: sampling, sinks, verdicts, outcomes, and who is told. Roof: concrete classes meet here.

One of three ways, by the setting `sink`: this process judges; samples and outcomes go to a stream that `podium monitor` reads;
or nothing is sampled.
"""

import importlib
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server.core.clock import NS_PER_US
from server.core.errors import Unsupported
from server.core.monitoring_settings import ModelMonitoring, MonitoringSettings
from server.core.settings import ModelSettings
from server.core.tensors import byte_size
from server.core.versions import VersionKey
from server.held_folder import held
from server.lifecycle.published import Published
from server.lifecycle.replica import Replica
from server.monitoring.codec import Redaction
from server.monitoring.judging import Judging
from server.monitoring.lane import Lane
from server.monitoring.monitors import Monitors
from server.monitoring.outcome import Outcome
from server.monitoring.outcomes import Outcomes
from server.monitoring.outcomes_file import OutcomesFile
from server.monitoring.reading import MonitoringReading, VersionReading
from server.monitoring.sampler import Plan, Sampler
from server.monitoring.sink import Sink
from server.retrain import Retrain, objectives
from server.telemetry.monitoring_readings import Objective

CHAMPION, CHALLENGER, OTHER = "champion", "challenger", "other"
"""Arms: the version that answers where none is named; the one of that alias; any other that is asked for by name."""


@dataclass(frozen=True, slots=True)
class _Served:
    """What monitoring depends on of a version."""

    arm: str
    settings: ModelSettings
    baseline: Any


class Monitored:
    """Thread-safe, but for `follow`, which one thread calls. Ownership: of all it makes; `close` it after the last batch."""

    def __init__(self, settings: MonitoringSettings) -> None:
        """Raises: Unsupported for what cannot work here; OSError for folders that cannot be made."""
        self._settings = settings
        self._served: Mapping[VersionKey, _Served] = {}
        self._redactions: dict[VersionKey, Redaction] = {}
        self.sampler: Sampler | None = None
        self.outcomes: Outcomes | None = None
        self.forward: Callable[[Outcome], None] | None = None
        self._monitors: Monitors | None = None
        self._kept: OutcomesFile | None = None
        self._retrain: Retrain | None = None
        self._closing: list[Callable[[], None]] = []
        sinks: list[Sink] = []
        if settings.sink == "process":
            sinks.append(self._judging())
        elif settings.sink == "redis":
            sinks.append(self._streaming())
        if settings.parquet.dir and sinks:
            sinks.append(_parquet(settings, self._redaction))
        if sinks:
            lanes = [Lane(sink, settings.buffer_rows, settings.buffer_bytes) for sink in sinks]
            self.sampler = Sampler(settings.seed, lanes)

    def _judging(self) -> Sink:
        folder = Path(self._settings.dir) if self._settings.dir else None
        lock = ExitStack()
        lock.enter_context(held(folder))
        self._closing.append(lock.close)
        self._monitors = monitors = Monitors(folder)
        self.outcomes = outcomes = Outcomes(lambda: time.time_ns() // NS_PER_US, self._may_be_sampled)
        self._kept = None if folder is None else OutcomesFile(folder)
        if self._kept is not None:
            self._kept.restore(outcomes)
        self._retrain = retrain = Retrain(self._settings)
        self._closing.append(retrain.close)
        return Judging(monitors, outcomes, retrain.consider, self._save)

    def _save(self) -> None:
        if self._monitors is not None and self.outcomes is not None and self._kept is not None:
            self._monitors.save()
            self._kept.save(self.outcomes)

    def _may_be_sampled(self, model: str, id_hash: int) -> bool:
        return self.sampler is None or self.sampler.may_be_sampled(model, id_hash)

    def _streaming(self) -> Sink:
        settings = self._settings
        # by name: a server that judges by itself does not pay for a client of Redis
        module = importlib.import_module("server.monitoring.redis_sink")
        writers = [module.RedisWriter(settings.redis, settings.stream, settings.stream_rows) for _ in range(3)]
        outcomes = module.RedisOutcomes(writers[0])
        self.forward = lambda outcome: outcomes.send([outcome])
        self._closing.append(outcomes.close)
        sink: Sink = module.RedisSink(writers[1], writers[2], self._redaction)
        return sink

    def follow(self, published: Published) -> None:
        """What is served from now on."""
        if self.sampler is None:
            return
        served = {key: _served(key, replica, published) for key, replica in published.ready.items() if _wanted(replica)}
        for key, each in served.items():
            if self._served.get(key) != each and self._monitors is not None and self.outcomes is not None:
                self._monitors.serve(key, each.settings, each.baseline, (each.arm,))
                self.outcomes.serve(key, each.settings.monitoring, each.baseline)
        for key in self._served.keys() - served.keys():
            if self._monitors is not None and self.outcomes is not None:
                self._monitors.leave(key)
                self.outcomes.leave(key)
        self._served = served
        # what waits for a sink is redacted as its version was, also when that has left
        self._redactions |= {key: _redaction(each.settings) for key, each in served.items()}
        if self._retrain is not None:
            self._retrain.follow(self._settings_of())
        self.sampler.follow({key: _plan(each, published.ready[key]) for key, each in served.items()})

    def reading(self) -> MonitoringReading | None:
        """What there is to tell; None where nothing is sampled."""
        if self.sampler is None:
            return None
        versions: tuple[VersionReading, ...] = ()
        if self._monitors is not None and self.outcomes is not None:
            qualities = {(each.key, each.arm): each for each in self.outcomes.readings()}
            versions = tuple(replace(each, quality=qualities.get((each.key, each.arm))) for each in self._monitors.versions())
        events = {} if self._retrain is None else self._retrain.events()
        return MonitoringReading(versions, self.sampler.reading(), self.sampler.lag_s(), events)

    def findings(self) -> MonitoringReading:
        """What the monitors of this process have found. Raises: Unsupported where it has none."""
        if self._settings.sink != "process":
            where = "podium monitor judges" if self._settings.sink == "redis" else "nothing is sampled"
            raise Unsupported(f"this server has no monitors: monitoring.sink is '{self._settings.sink}', so {where}")
        return self.reading() or MonitoringReading()

    def objectives(self) -> dict[VersionKey, Objective]:
        """What versions are to reach."""
        return objectives(self._settings_of())

    def _settings_of(self) -> dict[VersionKey, ModelMonitoring]:
        return {key: each.settings.monitoring for key, each in self._served.items()}

    def close(self) -> None:
        """Hand over what waits, and keep what was found. Idempotent."""
        if self.sampler is not None:
            self.sampler.close()
        for close in self._closing:
            close()

    def _redaction(self, key: VersionKey) -> Redaction:
        """What must not leave this process of a version that is served, or was."""
        return self._redactions[key]


def _redaction(settings: ModelSettings) -> Redaction:
    packed = {} if settings.features is None else {each.name: each.columns for each in settings.features.inputs}
    return settings.monitoring.redact, packed


def _wanted(replica: Replica) -> bool:
    """A decoupled version has any number of answers to a request: there is no row to compare."""
    return replica.settings.monitoring.enabled and not replica.settings.decoupled


def _served(key: VersionKey, replica: Replica, published: Published) -> _Served:
    arm = OTHER
    if published.defaults.get(key.model) == key.version:
        arm = CHAMPION
    elif published.named().get((key.model, CHALLENGER)) is replica:
        arm = CHALLENGER
    return _Served(arm, replica.settings, replica.baseline)


def _plan(served: _Served, replica: Replica) -> Plan:
    features = () if replica.features is None else replica.features.names
    # every call that names no version goes to the default
    weight = float(served.arm == CHAMPION)
    return Plan(served.arm, 0, weight, served.settings.monitoring, features, _row_bytes(replica))


def _row_bytes(replica: Replica) -> int:
    """Of a row's inputs and outputs, as far as they are not found for it; 0 where that differs from row to row."""
    signature = replica.signature
    specs = (*signature.inputs, *signature.outputs)
    if any(spec.datatype == "BYTES" or min(spec.shape, default=1) < 0 for spec in specs):
        return 0
    return sum(byte_size(spec.datatype, spec.shape) for spec in specs)


def _parquet(settings: MonitoringSettings, redaction: Callable[[VersionKey], Any]) -> Sink:
    try:
        module = importlib.import_module("server.monitoring.parquet_sink")
    except ImportError as error:
        raise Unsupported(f"samples as files need the extra 'features', which is not installed: {error}") from error
    sink: Sink = module.ParquetSink(settings.parquet, redaction)
    return sink
