"""The monitor of one version in one arm: it learns where there is no baseline, and judges window after window. **Pure.**

Floor 4. Its state is that of the window judged last: an alarm ends with the first window in which nothing that it named is
suspicious any more (`judge`), and what was raised stays to be read: how often, and the last one whole.
"""

from collections import deque
from dataclasses import dataclass, field, replace

from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.monitoring.baseline import Baseline
from server.monitoring.baseline_document import with_digest
from server.monitoring.build import build
from server.monitoring.counting import Counter
from server.monitoring.judge import Detectors, Reference, judge
from server.monitoring.reading import KEPT_WINDOWS, VersionReading
from server.monitoring.samples import Samples
from server.monitoring.verdict import DriftState, WindowVerdict
from server.monitoring.windows import Windows

TRANSITIONS: dict[DriftState, frozenset[DriftState]] = {
    DriftState.LEARNING: frozenset({DriftState.NO_DATA}),
    DriftState.NO_DATA: frozenset({DriftState.OK, DriftState.DEGRADED, DriftState.ALARM}),
    DriftState.OK: frozenset({DriftState.NO_DATA, DriftState.DEGRADED, DriftState.ALARM}),
    DriftState.DEGRADED: frozenset({DriftState.NO_DATA, DriftState.OK, DriftState.ALARM}),
    DriftState.ALARM: frozenset({DriftState.NO_DATA, DriftState.OK, DriftState.DEGRADED}),
}
"""Another baseline is another monitor, so nothing leads back to LEARNING."""
MAX_LEARNING_BYTES = 128 * 2**20
"""Rows that are learnt from are kept until there are enough. Large ones are enough, by then, when there are so many bytes."""
OPEN_BEFORE_JUDGING = 64
"""Windows that rows may open faster than `tick` comes: a replay runs at any speed."""
KEPT_FINDINGS = 20_000
"""Findings that are kept of a version and arm, in its newest verdicts: about 14 MiB. Older verdicts keep what an alarm
named."""


def advance(current: DriftState, following: DriftState) -> DriftState:
    """Return `following` if it is the current state or the table allows it. Raises: ValueError, which is a bug.

    >>> advance(DriftState.NO_DATA, DriftState.OK)
    <DriftState.OK: 'ok'>
    """
    if following != current and following not in TRANSITIONS[current]:
        raise ValueError(f"no transition from {current} to {following}")
    return following


@dataclass(slots=True)
class Memory:
    """Everything that a monitor remembers. `learned`: the rows so far, while there is no baseline; `verdicts`: the newest
    first.

    `refused`: why nothing could be learnt; "" where that was not tried or went well. `untold`: judged while rows were added,
    and not returned by `tick` yet.
    """

    windows: Windows
    baseline: Baseline | None = None
    detectors: Detectors = field(default_factory=lambda: Detectors(()))
    learned: list[Samples] = field(default_factory=list)
    learned_rows: int = 0
    refused: str = ""
    state: DriftState = DriftState.LEARNING
    verdicts: deque[WindowVerdict] = field(default_factory=lambda: deque(maxlen=KEPT_WINDOWS))
    untold: list[WindowVerdict] = field(default_factory=list)
    alarms: int = 0
    last_alarm: WindowVerdict | None = None


class Monitor:
    """Of one version in one arm. Ownership: whoever calls it holds one lock."""

    def __init__(self, key: VersionKey, arm: str, settings: ModelSettings, memory: Memory | None = None) -> None:
        self.key, self.arm, self.settings = key, arm, settings
        self.memory = Memory(Windows.of(settings.monitoring)) if memory is None else memory
        self._reference: Reference | None = None
        self._counter: Counter | None = None
        self._learning_bytes = sum(each.nbytes for each in self.memory.learned)
        if self.memory.baseline is not None:
            self._judge_by(self.memory.baseline)

    def compare_with(self, baseline: Baseline) -> None:
        """Judge windows by this baseline from now on. Of a monitor that has none."""
        self.memory.baseline = baseline
        self.memory.state = advance(self.memory.state, DriftState.NO_DATA)
        self._judge_by(baseline)

    def add(self, samples: Samples, now_us: int) -> None:
        """Count rows, or learn from them. Raises nothing for what rows hold."""
        memory = self.memory
        if self._counter is None:
            self._learn(samples)
            return
        for start, rows in memory.windows.places(samples.time_us, now_us):
            part = samples if isinstance(rows, slice) else samples.part(rows)
            memory.windows.add(start, part.rows, int(part.time_us.max()), self._counter.count(part))
        memory.windows.settle(now_us)
        if memory.windows.by_rows and len(memory.windows.open) > OPEN_BEFORE_JUDGING:
            self._judge_complete(now_us)

    def count(self, offered: int, dropped: int, time_us: int, now_us: int) -> None:
        """Rows that were chosen beside those that are added, and how many of them were lost, at about `time_us`."""
        if self._counter is not None:
            self.memory.windows.count(offered, dropped, time_us, now_us)

    def tick(self, now_us: int) -> list[WindowVerdict]:
        """Judge every window that is complete, the oldest first."""
        self._judge_complete(now_us)
        made, self.memory.untold = self.memory.untold, []
        return made

    def reading(self) -> VersionReading:
        """What there is to tell at this instant."""
        memory = self.memory
        return VersionReading(
            key=self.key,
            arm=self.arm,
            state=memory.state,
            baseline=memory.baseline,
            windows=tuple(memory.verdicts),
            open_rows=memory.windows.open_rows,
            learned_rows=memory.learned_rows,
            learning_rows=self.settings.monitoring.learning_rows,
            late_rows=memory.windows.late_rows,
            misdated_rows=memory.windows.misdated_rows,
            alarms=memory.alarms,
            last_alarm=memory.last_alarm,
        )

    def _learn(self, samples: Samples) -> None:
        memory = self.memory
        if memory.refused:
            return
        memory.learned.append(samples)
        memory.learned_rows += samples.rows
        self._learning_bytes += samples.nbytes
        if memory.learned_rows < self.settings.monitoring.learning_rows and self._learning_bytes < MAX_LEARNING_BYTES:
            return
        try:
            self.compare_with(with_digest(build(memory.learned, self.settings, origin="learned")))
        except ValueError as error:
            memory.refused = str(error)
        memory.learned = []

    def _judge_complete(self, now_us: int) -> None:
        memory = self.memory
        if self._reference is None:
            return
        for window in memory.windows.close(now_us):
            verdict, memory.detectors = judge(self.key, self.arm, window, self._reference, memory.detectors)
            memory.state = advance(memory.state, verdict.state)
            if verdict.alarmed:
                memory.alarms += 1
                memory.last_alarm = verdict
            memory.verdicts.appendleft(verdict)
            memory.untold.append(verdict)
            self._thin()

    def _thin(self) -> None:
        """Keep at most `KEPT_FINDINGS` findings, beside those of the newest verdict and those that alarms named."""
        left = KEPT_FINDINGS
        for place, verdict in enumerate(self.memory.verdicts):
            left -= len(verdict.findings)
            if left < 0 < place:
                self.memory.verdicts[place] = _named_only(verdict)

    def _judge_by(self, baseline: Baseline) -> None:
        self._reference = Reference.of(baseline, self.settings.monitoring)
        self._counter = Counter(baseline.layout, self.settings)
        if not self.memory.detectors.logs:
            self.memory.detectors = self._reference.fresh


def _named_only(verdict: WindowVerdict) -> WindowVerdict:
    if len(verdict.findings) == len(verdict.alarmed):
        return verdict
    named = tuple(each for each in verdict.findings if f"{each.stream}:{each.check}" in verdict.alarmed)
    return replace(verdict, findings=named)
