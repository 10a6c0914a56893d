"""The sink that judges in this process: samples to the monitors, and to the outcomes that await them; verdicts to who acts.

Floor 4, on the thread of its lane. It decides nothing itself.
"""

import time
from collections.abc import Callable, Sequence

from server.core.clock import NS_PER_US
from server.core.versions import VersionKey
from server.monitoring.monitors import Monitors
from server.monitoring.outcomes import Outcomes
from server.monitoring.samples import Samples, together
from server.monitoring.verdict import QualityReading, WindowVerdict

Act = Callable[[Sequence[WindowVerdict], Sequence[QualityReading], int], None]

_SAVE_S = 60.0


class Judging:
    """A `Sink`. Ownership: `monitors` and `outcomes` are shared with calls and scrapes; saving them is this one's.

    `act`: is told of new verdicts and of how good answers are. `wall_us`: microseconds since 1970.
    """

    name = "process"

    def __init__(
        self,
        monitors: Monitors,
        outcomes: Outcomes,
        act: Act,
        save: Callable[[], None],
        wall_us: Callable[[], int] = lambda: time.time_ns() // NS_PER_US,
    ) -> None:
        self._monitors, self._outcomes = monitors, outcomes
        self._act, self._save = act, save
        self._wall_us = wall_us
        self._looked_us = 0
        self._saved_us = wall_us()

    def write(self, samples: Sequence[Samples]) -> None:
        """See `Sink`."""
        whole = together(samples)
        self._monitors.add(whole)
        self._outcomes.add(whole)

    def lost(self, key: VersionKey, arm: str, rows: int, time_us: int) -> None:
        """See `Sink`."""
        self._monitors.count(key, arm, rows, rows, time_us)

    def idle(self) -> None:
        """See `Sink`. Judges what is complete; keeps what was found, at once where windows have closed."""
        now_us = self._wall_us()
        if now_us - self._looked_us < 1_000_000:
            return
        self._looked_us = now_us
        verdicts = self._monitors.tick(now_us)
        self._outcomes.tick(now_us)
        self._act(verdicts, self._outcomes.readings(), now_us)
        if verdicts or now_us - self._saved_us > _SAVE_S * 1_000_000:
            self._saved_us = now_us
            self._save()

    def close(self) -> None:
        """See `Sink`."""
        self._save()
