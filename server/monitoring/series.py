"""One version in one arm: its predictions that await outcomes, and what became of the outcomes. **Pure.**

Floor 4. Every rule of an outcome is here: which of them is accepted, and when a prediction is counted.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from server.core.clock import US_PER_S
from server.core.errors import InvalidRequest
from server.core.monitoring_settings import QualitySettings
from server.core.versions import VersionKey
from server.monitoring.outcome import ReceiptStatus
from server.monitoring.pending import NO_ID, Floats, Pending, Settled, keys_of
from server.monitoring.samples import Samples
from server.monitoring.scores import scores_of
from server.monitoring.verdict import QualityReading

ESTIMATE_ROWS = 10_000
"""The newest scores that label-free estimates are made of: enough for a standard error of half a percent."""

MAX_BYTES = 512 * 2**20
"""What the pending predictions of one series may take, however many numbers a score has."""

_BYTES_BESIDE_SCORES = 72


@dataclass(eq=False)
class Series:
    """What is known of the outcomes of one version in one arm. Ownership: one thread at a time.

    `served`: predictions that can have an outcome; `without_id` and `unusable`: sampled rows that cannot, because their request
    had no id, or because their score is no such number as `settings.kind` needs. `latest`: `[n, K]`, the newest usable scores.
    """

    key: VersionKey
    arm: str
    settings: QualitySettings
    outcomes: Counter[ReceiptStatus] = field(default_factory=Counter)
    served: int = 0
    without_id: int = 0
    unusable: int = 0
    pending: Pending | None = None
    latest: Floats | None = None

    def add(self, samples: Samples, now_us: int) -> list[int]:
        """Remember sampled rows of its own; the numbers that the new ones are known by. Settle before."""
        scores, usable = scores_of(samples.outputs, samples.rows, self.settings)
        if self.pending is not None and self.pending.columns != scores.shape[1]:
            usable = np.zeros_like(usable)
        named = samples.id_hash != np.uint64(NO_ID)
        self.unusable += int((~usable).sum())
        self.without_id += int((usable & ~named).sum())
        if not usable.any():
            return []
        self._remember_latest(scores[usable])
        if self.pending is None:
            self.pending = self._room_for(scores.shape[1])
        kept = usable & named
        keys = keys_of(samples.id_hash[kept], samples.row[kept])
        new = self.pending.add(keys, scores[kept], samples.time_us[kept], now_us)
        self.served += len(new) if not self.settings.horizon_s else 0
        return [int(key) for key in new.tolist()]

    def _room_for(self, columns: int) -> Pending:
        limit = min(self.settings.pending_rows, MAX_BYTES // (_BYTES_BESIDE_SCORES + 8 * columns))
        return Pending(columns, max(limit, 1), round(self.settings.horizon_s * US_PER_S))

    def _remember_latest(self, scores: Floats) -> None:
        if self.latest is not None:
            scores = np.concatenate([self.latest, scores])
        self.latest = scores[-ESTIMATE_ROWS:].copy()

    def report(self, key: int, label: float, now_us: int) -> ReceiptStatus | None:
        """Take the outcome of the row that is known so; None where no such prediction is remembered.

        The last one counts that comes before the prediction is counted. After that it is the same again, or late.
        Raises: InvalidRequest for a label that a prediction of this kind cannot have: it may have been reported under others.
        """
        number = -1 if self.pending is None else self.pending.find(key)
        if self.pending is None or number < 0:
            return None
        if not _fits(label, self.settings):
            raise InvalidRequest(f"an outcome of {self.key} is of kind '{self.settings.kind}', and cannot be {label!r}")
        status = self._taken(self.pending, number, label, now_us)
        self.outcomes[status] += 1
        return status

    def _taken(self, pending: Pending, number: int, label: float, now_us: int) -> ReceiptStatus:
        before = pending.label_of(number)
        if before == label:
            return ReceiptStatus.DUPLICATE
        if pending.is_closed(number, now_us):
            return ReceiptStatus.LATE
        pending.label(number, label)
        return ReceiptStatus.ACCEPTED if np.isnan(before) else ReceiptStatus.REPLACED

    def settle(self, now_us: int) -> Settled | None:
        """The predictions that are counted now; None where there are none."""
        if self.pending is None:
            return None
        settled = self.pending.settle(now_us)
        self.served += len(settled.labels) if self.settings.horizon_s else 0
        return settled if len(settled.labels) else None

    def reading(self) -> QualityReading:
        """What is known of it before anything is judged: how many outcomes came, and how many could have."""
        counts = {status.value: count for status, count in sorted(self.outcomes.items())}
        return QualityReading(self.key, self.arm, counts, self.served, 0, {}, {}, 0, {}, None)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All that it knows."""
        counts = [*(self.outcomes[status] for status in ReceiptStatus), self.served, self.without_id, self.unusable]
        kept: dict[str, NDArray[np.generic]] = {"counts": np.array(counts, np.int64)}
        if self.latest is not None:
            kept["latest"] = self.latest
        if self.pending is not None:
            kept |= {f"pending.{name}": array for name, array in self.pending.arrays().items()}
        return kept

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Know what `arrays` gave, of the same settings. Raises: KeyError, ValueError."""
        counts = list(map(int, arrays["counts"].tolist()))
        self.outcomes = +Counter(dict(zip(ReceiptStatus, counts[: len(ReceiptStatus)], strict=True)))
        self.served, self.without_id, self.unusable = counts[len(ReceiptStatus) :]
        if "latest" in arrays:
            self.latest = np.atleast_2d(np.asarray(arrays["latest"], np.float64))
            pending = {name.removeprefix("pending."): array for name, array in arrays.items() if name.startswith("pending.")}
            self.pending = self._room_for(self.latest.shape[1])
            self.pending.restore(pending)


def _fits(label: float, settings: QualitySettings) -> bool:
    if settings.kind == "binary":
        return label in (0.0, 1.0)
    return math.isfinite(label) and (settings.kind == "regression" or (label >= 0 and label.is_integer()))
