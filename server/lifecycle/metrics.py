"""What the lifecycle tells the telemetry. **Pure.** Names only; `server.telemetry.metrics` has what fits them."""

from typing import Protocol

from server.core.versions import VersionKey


class Recorder(Protocol):
    """One version's counters, as far as the lifecycle touches them."""

    def hold_memory(self, memory_bytes: int) -> None:
        """State what the loaded version holds now."""
        ...


class Metrics(Protocol):
    """`server.telemetry.metrics.Metrics`, as far as the lifecycle touches it."""

    def add(self, key: VersionKey) -> Recorder:
        """Begin, or go on, to record a version: the same recorder while the version is there."""
        ...

    def remove(self, key: VersionKey) -> None:
        """End a version's gauges. Idempotent."""
        ...

    def mark_ready(self, key: VersionKey, ready: bool) -> None:
        """State whether a version that was added serves."""
        ...

    def record_load(self, key: VersionKey, seconds: float, ok: bool) -> None:
        """Record one attempt to load a version."""
        ...
