"""Judging what a stream brings, for all replicas: the monitors and outcomes of a process that does nothing else.

Floor 4. Its clock is the stream's: what is done at which entry depends on nothing but the stream. So a process that is killed
anywhere and goes on from its files comes to the same bits as one that never stopped. Each file says up to which entry it knows
everything: what it knows is not counted in it again.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from feature_client.errors import StoreError
from server.core.clock import NS_PER_US
from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.monitoring.baseline import Baseline
from server.monitoring.entries import Offered
from server.monitoring.framing import Fields, framed, text
from server.monitoring.judging import Act
from server.monitoring.monitors import Monitors
from server.monitoring.outcome import Outcome
from server.monitoring.outcomes import Outcomes
from server.monitoring.samples import Samples
from server.monitoring.stream_position import START, StreamPosition, earlier
from server.registry.durable import write_atomically

_POSITION_FILE, _OUTCOMES_FILE = "stream.position", "stream.outcomes"
_MAGIC, _FORMAT = b"PdSj", 1
_SAVE_S = 60.0
_TICK_US = 1_000_000
_MISSED_WINDOWS = 24
"""For so long an arm that no rows come from is one that is missing, and not one that is gone."""
_log = logging.getLogger("podium.monitoring")

Find = Callable[[VersionKey], tuple[ModelSettings, Baseline | None] | None]
"""What the repository has of a version: the same object until that changes. None where there is nothing to monitor."""


class Source(Protocol):
    """`server.monitoring.redis_source.RedisSource`."""

    missed_rows: int
    damaged_entries: int

    @property
    def position(self) -> bytes:
        """See there."""
        ...

    @property
    def last(self) -> str:
        """See there."""
        ...

    def read(self, wait_s: float, /) -> int:
        """See there."""
        ...


@dataclass
class _Served:
    """`arms`: when rows of each came last. `past`: up to which entry its monitors know everything."""

    found: tuple[ModelSettings, Baseline | None]
    arms: dict[str, int] = field(default_factory=dict)
    past: str = START


class StreamJudging:
    """A `Taking`. Ownership: one thread calls everything but what says otherwise; `monitors` and `outcomes` are shared.

    `folder`: where everything is kept, None nowhere; nobody else may use it. `act` is told of verdicts. `wall_us`: microseconds
    since 1970. `connect` opens the stream at a position. Raises: what `connect` does; OSError for the folder.
    """

    def __init__(
        self,
        connect: Callable[[bytes, "StreamJudging"], Source],
        find: Find,
        folder: Path | None,
        act: Act,
        wall_us: Callable[[], int] = lambda: time.time_ns() // NS_PER_US,
    ) -> None:
        self._find, self._act, self._wall_us, self._folder = find, act, wall_us, folder
        self._served: dict[VersionKey, _Served] = {}
        self._now_us = self._ticked_us = 0
        self._outcomes_past = START
        self._due = self._silent = False
        self._saved_us = wall_us()
        self.read_rows = 0
        self.monitors = Monitors(folder, lambda: self._now_us)
        self.outcomes = Outcomes(lambda: self._now_us)
        self._source = connect(self._restore(), self)

    def step(self, wait_s: float) -> int:
        """Take what comes next, judge what is complete, keep what was found. How many entries there were."""
        asked_us = self._wall_us()
        try:
            met = self._source.read(wait_s)
        except StoreError as error:
            if not self._silent:
                _log.error("the stream of samples cannot be read", extra={"reason": str(error)})
            self._silent = True
            return 0
        self._silent = False
        if not met:
            self._advance(asked_us)
        if self._due or self._wall_us() - self._saved_us > _SAVE_S * 1_000_000:
            self.save()
        return met

    def lag_s(self) -> float:
        """How far what is known is behind. Any thread."""
        return max(0.0, (self._wall_us() - self._now_us) / 1e6) if self._now_us else 0.0

    @property
    def is_silent(self) -> bool:
        """Whether the stream could not be read the last time. Any thread."""
        return self._silent

    def settings(self) -> dict[VersionKey, ModelSettings]:
        """Of the versions that rows came from. Any thread."""
        return {key: each.found[0] for key, each in dict(self._served).items()}

    def dropped(self) -> dict[tuple[str, str], int]:
        """Rows that were trimmed unread, and entries that could not be read, by sink and reason. Any thread."""
        return {("stream", "trimmed"): self._source.missed_rows, ("stream", "damaged"): self._source.damaged_entries}

    def look(self) -> None:
        """See what the repository has of the versions that rows came from: new settings, or none of it any more."""
        for key, served in list(self._served.items()):
            found = self._find(key)
            if found is None:
                del self._served[key]
                self.monitors.leave(key)
                self.outcomes.leave(key)
                continue
            missed_us = self._now_us - _MISSED_WINDOWS * found[0].monitoring.window_s * 1e6
            arms = {arm: last_us for arm, last_us in served.arms.items() if last_us >= missed_us}
            if found is not served.found or arms.keys() != served.arms.keys():
                self._serve(key, _Served(found, arms, served.past))

    def save(self) -> None:
        """Keep everything: first what was counted, each file with the entry it knows of, the position in the stream last."""
        if self._folder is None or any(earlier(self._source.last, past) for past in self._pasts()):
            return  # what was counted before a kill is being passed: files would say that they know less than they do
        self._due, self._saved_us = False, self._wall_us()
        if not self.monitors.save(self._source.last):
            return
        served = [[*key, each.arms] for key, each in self._served.items()]
        position = {"stream": self._source.position.decode(), "served": served, "ticked_us": self._ticked_us}
        try:
            fields = [text(self._source.last), self.outcomes.document()]
            write_atomically(self._folder / _OUTCOMES_FILE, framed(_MAGIC, _FORMAT, fields))
            write_atomically(self._folder / _POSITION_FILE, json.dumps(position).encode())
        except OSError as error:
            _log.error("how far the stream was read cannot be kept", extra={"reason": str(error)})

    # -- what a source calls ----------------------------------------------------------------------------------------------

    def reached(self, entry: str, time_us: int) -> None:
        """See `Taking`. Windows close between entries, by the entries' own time."""
        self._advance(time_us)

    def samples(self, entry: str, samples: Samples) -> None:
        """See `Taking`."""
        served = self._heard(samples.key, samples.arm)
        self.read_rows += samples.rows
        if served is None or earlier(served.past, entry):
            self.monitors.add([samples])
        if earlier(self._outcomes_past, entry):
            self.outcomes.add([samples])

    def offered(self, entry: str, counts: Offered) -> None:
        """See `Taking`."""
        served = self._heard(counts.key, counts.arm)
        if served is None or earlier(served.past, entry):
            self.monitors.count(counts.key, counts.arm, counts.offered, counts.dropped, counts.time_us)

    def outcome(self, entry: str, outcome: Outcome) -> None:
        """See `Taking`."""
        if earlier(self._outcomes_past, entry):
            self.outcomes.report(outcome)

    def begun_anew(self) -> None:
        """See `Taking`."""
        self._outcomes_past = START
        for served in self._served.values():
            served.past = START

    # -- inside -----------------------------------------------------------------------------------------------------------

    def _pasts(self) -> list[str]:
        return [self._outcomes_past, *(each.past for each in self._served.values())]

    def _advance(self, time_us: int) -> None:
        self._now_us = max(self._now_us, time_us)
        if self._now_us - self._ticked_us < _TICK_US:
            return
        # whole seconds: wherever a process began, it looks at the same instants
        self._ticked_us = self._now_us - self._now_us % _TICK_US
        verdicts = self.monitors.tick(self._ticked_us)
        self.outcomes.tick(self._ticked_us)
        if verdicts:
            self._due = True
            self._act(verdicts, self.outcomes.readings(), self._ticked_us)

    def _heard(self, key: VersionKey, arm: str) -> _Served | None:
        served = self._served.get(key)
        if served is None:
            found = self._find(key)
            if found is None:
                return None
            served = self._serve(key, _Served(found, {arm: self._now_us}))
        elif arm not in served.arms:
            served.arms[arm] = self._now_us
            self._serve(key, served)
        served.arms[arm] = self._now_us
        return served

    def _serve(self, key: VersionKey, served: _Served) -> _Served:
        known = key in self._served
        settings, baseline = served.found
        self.monitors.serve(key, settings, baseline, tuple(served.arms))
        self.outcomes.serve(key, settings.monitoring, baseline)
        if not known:
            served.past = self.monitors.positions().get(key) or START
        self._served[key] = served
        return served

    def _restore(self) -> bytes:
        """Serve what was served, with what is kept of it. The position in the stream; b"" where there is none."""
        if self._folder is None:
            return b""
        position = _read(self._folder / _POSITION_FILE, self._restore_position) or b""
        _read(self._folder / _OUTCOMES_FILE, self._restore_outcomes)
        return position

    def _restore_position(self, document: bytes) -> bytes:
        saved = json.loads(document)
        position = str(saved["stream"]).encode()
        StreamPosition.load(position)
        for model, version, arms in saved["served"]:
            found = self._find(VersionKey(model, version))
            if found is not None:
                self._serve(VersionKey(model, version), _Served(found, dict(arms)))
        self._now_us = self._ticked_us = int(saved["ticked_us"])
        return position

    def _restore_outcomes(self, document: bytes) -> None:
        fields = Fields(document, _MAGIC, _FORMAT)
        past = fields.text()
        self.outcomes.restore(bytes(fields.rest()))
        self._outcomes_past = past


def _read(path: Path, restore: Callable[[bytes], bytes | None]) -> bytes | None:
    """Restore a file that there is. One that cannot be understood is set aside, and said."""
    try:
        return restore(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        path.replace(aside := path.with_name(path.name + ".unreadable"))
        _log.warning("what was kept cannot be used", extra={"reason": str(error), "kept_as": aside.name})
        return None
