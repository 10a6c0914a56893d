"""How many are sampled: a rate that follows the traffic of one version and arm, and a budget. **Pure.**

Floor 4. The rate depends on how many rows were served, never on what was in them, so that each row's probability is known.
"""

from dataclasses import dataclass, field

from server.core.clock import NS_PER_S
from server.core.monitoring_settings import ModelMonitoring

PEAK_S = 300
"""The highest rate is known of at least so long ago."""
_MEMORY_S = 60.0
"""Traffic is remembered about so long: a rate should follow the day, and not every gust."""


@dataclass(slots=True)
class Pace:
    """Of one version in one arm. Ownership: whoever calls it holds one lock.

    `rate`: the probability now. `offered`: rows that were chosen, whatever became of them.
    """

    settings: ModelMonitoring
    now_ns: int
    rate: float = field(init=False)
    offered: int = 0
    _rows: int = 0
    _served: int = 0
    _per_s: float = 0.0
    _known_s: float = 0.0
    _peaks: tuple[float, float] = field(init=False)
    _turned_ns: int = field(init=False)
    _tokens: float = field(init=False)
    _filled_ns: int = field(init=False)

    def __post_init__(self) -> None:
        # nothing is known of the traffic: the first rows of an arm are worth most
        self.rate = 1.0 if self.settings.floor_rows else self._wanted(0.0)
        self._peaks, self._turned_ns = (self.rate, self.rate), self.now_ns
        self._tokens = float(self.settings.max_rows_per_s)
        self._filled_ns = self.now_ns

    @property
    def peak(self) -> float:
        """The highest rate of the last minutes: whoever was sampled in them was drawn below it."""
        return max(self._peaks)

    def served(self, rows: int, now_ns: int) -> float:
        """Some rows were answered: the probability with which they are sampled."""
        self._rows += rows
        self._served += rows
        if now_ns - self.now_ns >= NS_PER_S:
            self._look(now_ns)
        elif self.rate > self.settings.max_rate and not self._known_s and self._served > self.settings.floor_rows:
            # the floor is reached within the first second
            self.rate = self._wanted(float(self._served))
        return self.rate

    def take(self, rows: int, now_ns: int) -> int:
        """How many of these chosen rows the budget has room for."""
        self.offered += rows
        limit = self.settings.max_rows_per_s
        self._tokens = min(float(limit), self._tokens + (now_ns - self._filled_ns) * limit / NS_PER_S)
        self._filled_ns = now_ns
        taken = min(rows, int(self._tokens))
        self._tokens -= taken
        return taken

    def _look(self, now_ns: int) -> None:
        passed_s = (now_ns - self.now_ns) / NS_PER_S
        # a mean while little is known, then the newest seconds count more than those long ago
        self._known_s = min(self._known_s + passed_s, _MEMORY_S)
        weight = min(passed_s / self._known_s, 1.0)
        self._per_s += weight * (self._rows / passed_s - self._per_s)
        self._rows, self.now_ns = 0, now_ns
        self.rate = self._wanted(self._per_s)
        before, latest = self._peaks
        if now_ns - self._turned_ns >= PEAK_S * NS_PER_S:
            before, latest, self._turned_ns = latest, self.rate, now_ns
        self._peaks = before, max(latest, self.rate)

    def _wanted(self, per_s: float) -> float:
        settings = self.settings
        expected = per_s * settings.window_s
        rate = settings.rate or (min(settings.target_rows / expected, settings.max_rate) if expected else settings.max_rate)
        floor = min(settings.floor_rows / expected, 1.0) if expected else float(settings.floor_rows > 0)
        return max(rate, floor)
