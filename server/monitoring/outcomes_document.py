"""What is known of outcomes, as bytes: an archive of numpy's arrays, and what they are of. **Pure.**"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from server.core.versions import VersionKey
from server.monitoring.early import Waiting
from server.monitoring.outcome import ReceiptStatus
from server.monitoring.quality import Quality
from server.monitoring.series import Series

Early = Sequence[tuple[str, int, int, Waiting]]
Counts = Counter[tuple[VersionKey, ReceiptStatus]]

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known of one version in one arm, as it is kept. `judged_by`: what its figures depend on, see `Outcomes`; they are
    of use for nothing else.
    """

    key: VersionKey
    arm: str
    judged_by: str
    series: Mapping[str, NDArray[Any]]
    quality: Mapping[str, NDArray[Any]]

    @classmethod
    def of(cls, series: Series, quality: Quality, judged_by: str) -> "Kept":
        """Copies nothing."""
        return cls(series.key, series.arm, judged_by, series.arrays(), quality.arrays())

    def revive(self, series: Series, quality: Quality) -> None:
        """Fill a new series and its quality. Raises: ValueError."""
        try:
            series.restore(self.series)
            quality.restore(self.quality)
        except (KeyError, TypeError) as error:
            raise ValueError(f"what was kept of outcomes cannot be understood: {type(error).__name__}: {error}") from None


def written(parts: Sequence[Kept], early: Early, counts: Counts) -> bytes:
    """Everything."""
    arrays: dict[str, Any] = {}
    for index, part in enumerate(parts):
        arrays |= {f"{index}.series.{name}": array for name, array in part.series.items()}
        arrays |= {f"{index}.quality.{name}": array for name, array in part.quality.items()}
    described = {
        "format": FORMAT,
        "parts": [[*part.key, part.arm, part.judged_by] for part in parts],
        "counts": [[*key, status.value, count] for (key, status), count in counts.items()],
        "early": [[model, version] for model, version, _, _ in early],
    }
    arrays["early.keys"] = np.array([key for _, _, key, _ in early], np.uint64)
    arrays["early.labels"] = np.array([waiting.label for *_, waiting in early], np.float64)
    arrays["early.since_us"] = np.array([waiting.since_us for *_, waiting in early], np.int64)
    arrays["early.found"] = np.array([waiting.found for *_, waiting in early], np.bool_)
    arrays["about"] = np.frombuffer(json.dumps(described).encode(), np.uint8)
    opened = BytesIO()
    np.savez(opened, **arrays)
    return opened.getvalue()


def read(document: bytes) -> tuple[list[Kept], Early, Counts]:
    """What `written` was given. Raises: ValueError."""
    try:
        with np.load(BytesIO(document), allow_pickle=False) as archive:
            arrays: dict[str, NDArray[Any]] = dict(archive)
        described = json.loads(arrays["about"].tobytes())
        if described["format"] != FORMAT:
            raise ValueError(f"outcomes were kept in format {described['format']}, and this is {FORMAT}")
        parts = [
            Kept(
                VersionKey(model, version),
                arm,
                judged_by,
                _of(arrays, f"{index}.series."),
                _of(arrays, f"{index}.quality."),
            )
            for index, (model, version, arm, judged_by) in enumerate(described["parts"])
        ]
        counts = Counter({(VersionKey(*key), ReceiptStatus(status)): count for *key, status, count in described["counts"]})
        columns = zip(*(arrays[f"early.{name}"].tolist() for name in ("keys", "labels", "since_us", "found")), strict=True)
        places = described["early"]
        early = [
            (model, version, key, Waiting(*waiting)) for (model, version), (key, *waiting) in zip(places, columns, strict=True)
        ]
    except (BadZipFile, EOFError, KeyError, OSError, TypeError) as error:
        raise ValueError(f"what was kept of outcomes cannot be understood: {type(error).__name__}: {error}") from None
    return parts, early, counts


def _of(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
