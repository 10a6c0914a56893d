"""Who is traced, and where traces go: the one thing about tracing that the door holds.

Floor 2. `on` is all that an untraced server looks at per request. The door asks `choose` when a request has ended, and only
then says what became of it (`record`): nothing runs on a request's way.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from server.core.clock import Clock, monotonic_ns
from server.core.requests import Caller
from server.core.settings import TraceSettings
from server.telemetry.readings import TraceReading
from server.telemetry.trace import Parent, Trace, parent_of
from server.telemetry.trace_rules import TraceLayers, TraceRules, changes_of, values_of
from server.telemetry.trace_writer import TraceSink, TraceWriter

OPENTELEMETRY = "opentelemetry"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A request that is traced: its number, by which rules, and within whose trace."""

    number: int
    rules: TraceRules
    parent: Parent | None

    @property
    def timestamps(self) -> bool:
        """Whether it is wanted what happened when."""
        return "TIMESTAMPS" in self.rules.trace_level

    @property
    def tensors(self) -> bool:
        """Whether its tensors are wanted."""
        return "TENSORS" in self.rules.trace_level


class Tracer:
    """Thread-safe. `sink` None: nowhere to write, so that nothing is ever traced."""

    def __init__(
        self, settings: TraceSettings | None = None, sink: TraceSink | None = None, clock: Clock = monotonic_ns
    ) -> None:
        settings = settings or TraceSettings()
        self.clock = clock
        self._mode = settings.mode
        self._file = settings.file
        rules = TraceRules(frozenset(settings.level), settings.rate, settings.count, settings.log_frequency)
        self._layers = TraceLayers(rules, self._mode, self._file)
        self._writer = None if sink is None else TraceWriter(sink, settings.buffer_traces, settings.buffer_bytes)
        self._lock = threading.Lock()
        self._number = 0
        self.on = self.propagates = False
        """Whether anything may be traced; and whether it depends on what callers say of their own traces."""
        self._watch: Callable[[bool], None] = lambda on: None
        self._look()

    def watch(self, watch: Callable[[bool], None]) -> None:
        """Tell `watch` whether anything may be traced, now and whenever that may have changed; from any thread."""
        self._watch = watch
        watch(self.on)

    def choose(self, model: str, caller: Caller) -> Chosen | None:
        """Whether a request that has ended is traced. Call it once for each while `on`; what it returns goes to `record`."""
        parent = parent_of(caller.traceparent, caller.tracestate) if self.propagates and caller.traceparent else None
        with self._lock:
            quota = self._layers.quota(model)
            chosen = quota.take(forced=parent is not None and parent.sampled)
            if not chosen:
                return None
            if quota.exhausted():
                self._look()
            self._number += 1
            return Chosen(self._number, quota.rules, parent)

    def record(self, trace: Trace) -> None:
        """Hand over what became of a chosen request; never waits."""
        if self._writer is not None:
            self._writer.put(trace)

    def values(self, model: str) -> dict[str, list[str]]:
        """The settings in force for a model, or for all without settings of their own where it is ""."""
        with self._lock:
            return values_of(self._layers.quota(model).now(), self._mode, self._file)

    def change(self, model: str, values: Mapping[str, Sequence[str]]) -> None:
        """Change settings of a model, or of all. All of them, or none. Raises: InvalidRequest, Unsupported."""
        changes = changes_of(values, self._mode)
        with self._lock:
            self._layers.change(model, changes)
            self._look()

    def reading(self) -> TraceReading:
        """How many traces were written, and how many were lost."""
        return TraceReading() if self._writer is None else self._writer.reading()

    def close(self, timeout_s: float) -> bool:
        """Write what waits, as far as that is done within the time; nothing is traced any more.

        Returns: False if the writer's thread is still inside its sink.
        """
        self.on = self.propagates = False
        return self._writer is None or self._writer.close(timeout_s)

    def _look(self) -> None:
        quotas = self._layers.quotas()
        self.propagates = self._mode == OPENTELEMETRY and any(quota.rules.trace_level for quota in quotas)
        self.on = self.propagates or any(not quota.exhausted() for quota in quotas)
        self._watch(self.on)
