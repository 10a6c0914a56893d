"""Outcomes: what was true of sampled predictions, joined with them, and what that says of each version.

Floor 4. Thread-safe, by two locks: who reports an outcome never waits for statistics, which take milliseconds and are made by
whoever ticks or reads. Nothing here waits for anything else. `judging` is taken before `joining`.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from threading import Lock

from server.core.errors import InvalidRequest
from server.core.monitoring_settings import ModelMonitoring, QualitySettings
from server.core.versions import VersionKey
from server.monitoring import outcomes_document
from server.monitoring.baseline import Baseline, ReferenceQuality
from server.monitoring.early import Early, Place
from server.monitoring.outcome import Outcome, Receipt, ReceiptStatus
from server.monitoring.outcomes_document import Kept
from server.monitoring.pending import Settled, key_of
from server.monitoring.quality import Quality
from server.monitoring.samples import Samples
from server.monitoring.series import Series
from server.monitoring.verdict import QualityReading

_log = logging.getLogger("podium.monitoring")
KEPT_PARTS = 64
"""Versions and arms of an earlier process that have not been served again, and are remembered all the same."""
LEFT_VERSIONS = 16
"""Versions that are no longer served and whose outcomes are still taken: the last ones that left."""

_PART = 1024
"""Rows that are remembered at once: half a millisecond."""

_BEST = (
    *(ReceiptStatus.ACCEPTED, ReceiptStatus.REPLACED, ReceiptStatus.DUPLICATE),
    *(ReceiptStatus.LATE, ReceiptStatus.NOT_SAMPLED),
)


@dataclass(slots=True)
class _Serving:
    """A version whose outcomes are taken."""

    settings: ModelMonitoring
    reference: ReferenceQuality | None
    left: bool = False

    @property
    def judged_by(self) -> str:
        """What its figures depend on."""
        settings = self.settings
        numbers = (settings.window_s, settings.alarm_every_windows, settings.target_rows)
        return sha256(f"{settings.quality!r} {numbers} {self.reference!r}".encode()).hexdigest()


@dataclass(slots=True)
class _Judged:
    """A series, and what is known of it. `settled`: what has not gone into it yet."""

    series: Series
    quality: Quality
    settled: list[Settled]


class Outcomes:
    """Of all versions in this process."""

    def __init__(
        self, clock_us: Callable[[], int], may_be_sampled: Callable[[str, int], bool] = lambda model, id_hash: True
    ) -> None:
        """`clock_us`: microseconds since 1970. `may_be_sampled`: whether predictions of a model whose id has this hash are
        sampled at the highest rate that was in force of late; where it says no, no outcome waits for one.
        """
        self._clock_us = clock_us
        self._may_be_sampled = may_be_sampled
        self._judging, self._joining = Lock(), Lock()
        self._serving: OrderedDict[VersionKey, _Serving] = OrderedDict()
        self._judged: dict[tuple[VersionKey, str], _Judged] = {}
        self._early = Early()
        self._kept: list[Kept] = []
        self._counts: Counter[tuple[VersionKey, ReceiptStatus]] = Counter()

    # -- versions -------------------------------------------------------------------------------------------------------

    def serve(self, key: VersionKey, settings: ModelMonitoring, baseline: Baseline | None) -> None:
        """Take outcomes of a version from now on, if its settings have `quality`. What was known of it stays, where neither the
        settings of its quality nor the baseline have changed.
        """
        with self._judging, self._joining:
            before = self._judged_by(key)
            self._serving.pop(key, None)
            if settings.quality is not None:
                self._serving[key] = _Serving(settings, None if baseline is None else baseline.quality)
            if before != self._judged_by(key):
                self._forget(key)
            self._revive(key)

    def leave(self, key: VersionKey) -> None:
        """A version is not served any more. Its outcomes are taken until `LEFT_VERSIONS` others have left after it."""
        with self._judging, self._joining:
            serving = self._serving.get(key)
            if serving is None:
                return
            serving.left = True
            self._serving.move_to_end(key)
            left = [each for each, how in self._serving.items() if how.left]
            for each in left[: max(len(left) - LEFT_VERSIONS, 0)]:
                del self._serving[each]
                self._forget(each)

    def _forget(self, key: VersionKey) -> None:
        self._judged = {place: judged for place, judged in self._judged.items() if place[0] != key}

    def quality_of(self, model: str, version: int = 0) -> QualitySettings | None:
        """How outcomes of a version are understood, of the last one that was served where `version` is 0; None for one whose
        outcomes are not taken.
        """
        with self._joining:
            for key, serving in reversed(self._serving.items()):
                if key.model == model and version in (0, key.version):
                    return serving.settings.quality
        return None

    # -- joining --------------------------------------------------------------------------------------------------------

    def add(self, samples: Sequence[Samples]) -> None:
        """Remember sampled predictions, in the order in which they were served. Those of versions that are not known here, or
        take no outcomes, are left out.
        """
        now_us = self._clock_us()
        # in parts, between which outcomes can be reported
        for each in (whole.part(slice(first, first + _PART)) for whole in samples for first in range(0, whole.rows, _PART)):
            with self._joining:
                judged = self._of(each.key, each.arm)
                if judged is None:
                    continue
                # before those that make room for others have gone
                _settle(judged, now_us)
                keys = judged.series.add(each, now_us)
                for version in (0, each.key.version):
                    self._meet(judged.series, version, keys, now_us)

    def _meet(self, series: Series, version: int, keys: Sequence[int], now_us: int) -> None:
        """Join new predictions with outcomes that were reported before."""
        for key, waiting in self._early.meet((series.key.model, version), keys):
            try:
                status = series.report(key, waiting.label, now_us)
            except InvalidRequest:
                status = ReceiptStatus.NOT_SAMPLED  # of no prediction that could have it
            if status is not None and not waiting.found:
                self._counts[series.key, status] += 1

    def _of(self, key: VersionKey, arm: str) -> _Judged | None:
        judged = self._judged.get((key, arm))
        if judged is None and (made := self._made(key, arm)) is not None:
            judged = self._judged[key, arm] = _Judged(*made, [])
        return judged

    def report(self, outcome: Outcome) -> Receipt:
        """Take an outcome. Any number of times: see `ReceiptStatus`.

        Raises: InvalidRequest for a label that the prediction cannot have, by the settings of its version.

        ACCEPTED without a version: no such prediction is known, but its sample may still be on its way; if none comes within
        `early.EARLY_US`, it is counted as not sampled. NOT_SAMPLED: none can come any more.
        """
        now_us = self._clock_us()
        key = key_of(outcome.id_hash, outcome.row)
        with self._joining:
            found: list[tuple[int, int]] = []
            for (version, _), judged in self._judged.items():
                if version.model == outcome.model and outcome.version in (0, version.version):
                    status = judged.series.report(key, outcome.label, now_us)
                    if status is not None:
                        found.append((_BEST.index(status), version.version))
            if found:
                best, answered = min(found)
                self._counts[VersionKey(outcome.model, answered), _BEST[best]] += 1
                return Receipt(_BEST[best], answered)
            status = self._wait(outcome, key, now_us)
            # one that waits is counted when it waits no more
            if status is not ReceiptStatus.ACCEPTED:
                self._counts[self._meant(outcome.model, outcome.version), status] += 1
            return Receipt(status)

    def _wait(self, outcome: Outcome, key: int, now_us: int) -> ReceiptStatus:
        """Keep an outcome whose prediction is not known."""
        long_ago = 0 < outcome.observed_us <= now_us - self._early.patience_us
        if long_ago or not self._may_be_sampled(outcome.model, outcome.id_hash):
            return ReceiptStatus.NOT_SAMPLED
        before, unfound = self._early.put((outcome.model, outcome.version), key, outcome.label, now_us)
        self._give_up(unfound)
        if before is None:
            return ReceiptStatus.ACCEPTED
        if before.label == outcome.label:
            return ReceiptStatus.DUPLICATE
        return ReceiptStatus.LATE if before.found else ReceiptStatus.REPLACED

    def _give_up(self, places: Sequence[Place]) -> None:
        """Outcomes of these models and versions were accepted, and no prediction was found for them."""
        for model, version in places:
            self._counts[self._meant(model, version), ReceiptStatus.NOT_SAMPLED] += 1

    def _meant(self, model: str, version: int) -> VersionKey:
        """The version that an outcome without a prediction is counted for: the last one that was served where it named none."""
        served = (key.version for key in reversed(self._serving) if key.model == model)
        return VersionKey(model, version or next(served, 0))

    # -- judging --------------------------------------------------------------------------------------------------------

    def tick(self, now_us: int) -> None:
        """Count the predictions whose time has come, and give up what has waited too long. About once a second."""
        with self._judging:
            self._count_all(now_us)

    def readings(self) -> tuple[QualityReading, ...]:
        """What is known of every version and arm that has samples, up to now."""
        with self._judging:
            self._count_all(self._clock_us())
            with self._joining:
                known = [(each.quality, self._reading(each.series), each.series.latest) for each in self._judged.values()]
            return tuple(quality.complete(reading, latest) for quality, reading, latest in known)

    def _reading(self, series: Series) -> QualityReading:
        """With what was not sampled of the version, in the first of its arms: nobody knows in which it was."""
        reading = series.reading()
        first = next(arm for key, arm in self._judged if key == series.key)
        unknown = self._counts[series.key, ReceiptStatus.NOT_SAMPLED] if series.arm == first else 0
        return replace(reading, outcomes={**reading.outcomes, "not_sampled": unknown}) if unknown else reading

    def _count_all(self, now_us: int) -> None:
        with self._joining:
            self._give_up(self._early.expire(now_us))
            for judged in self._judged.values():
                _settle(judged, now_us)
            due = [(judged.quality, judged.settled) for judged in self._judged.values() if judged.settled]
            for judged in self._judged.values():
                judged.settled = []
        for quality, settled in due:
            for each in settled:
                quality.count(each)

    def counts(self) -> Mapping[tuple[str, ReceiptStatus], int]:
        """Outcomes by model and what became of them, since the beginning. Those that wait for their prediction are not among
        them: they are counted as accepted once it comes, or else as not sampled.
        """
        with self._joining:
            found: Counter[tuple[str, ReceiptStatus]] = Counter()
            for (key, status), count in self._counts.items():
                found[key.model, status] += count
            return found

    @property
    def waiting(self) -> int:
        """Outcomes that came before the samples of their prediction, or have none; those joined of late included."""
        with self._joining:
            return len(self._early)

    # -- keeping --------------------------------------------------------------------------------------------------------

    def document(self) -> bytes:
        """Everything, for `restore` of another process."""
        with self._judging:
            self._count_all(self._clock_us())
            with self._joining:
                judged = [Kept.of(each.series, each.quality, self._judged_by(key)) for (key, _), each in self._judged.items()]
                return outcomes_document.written([*judged, *self._kept], self._early.rows(), self._counts)

    def restore(self, document: bytes) -> None:
        """Go on from there: before anything is added. What is of versions that are not served now waits until they are; what is
        judged by something else by then is left out.

        Raises: ValueError for what is no such document; then nothing has changed.
        """
        with self._judging, self._joining:
            kept, early, counts = outcomes_document.read(document)
            waiting = Early()
            waiting.restore(early)
            self._kept, self._early, self._counts = kept[-KEPT_PARTS:], waiting, counts
            for key in self._serving:
                self._revive(key)

    def _revive(self, key: VersionKey) -> None:
        """What was kept of a version that is served again."""
        own = [part for part in self._kept if part.key == key]
        self._kept = [part for part in self._kept if part.key != key]
        for part in own:
            made = self._made(key, part.arm) if part.judged_by == self._judged_by(key) else None
            if made is None or (key, part.arm) in self._judged:
                continue
            try:
                part.revive(*made)
            except ValueError as error:
                _log.warning("what was known of outcomes is lost", extra={"model": str(key), "reason": str(error)})
            else:
                self._judged[key, part.arm] = _Judged(*made, [])

    def _made(self, key: VersionKey, arm: str) -> tuple[Series, Quality] | None:
        serving = self._serving.get(key)
        if serving is None or serving.settings.quality is None:
            return None
        return Series(key, arm, serving.settings.quality), Quality(serving.settings, serving.reference)

    def _judged_by(self, key: VersionKey) -> str:
        """What the figures of a version depend on: they may go on only where it is the same. "" for one that is not known."""
        serving = self._serving.get(key)
        return "" if serving is None else serving.judged_by


def _settle(judged: _Judged, now_us: int) -> None:
    settled = judged.series.settle(now_us)
    if settled is not None:
        judged.settled.append(settled)
