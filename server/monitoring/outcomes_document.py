"""What is known of outcomes, as bytes: an archive of numpy's arrays, and what they are of. **Pure.**"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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

Part = tuple[Series, Quality]
Early = Sequence[tuple[str, int, int, Waiting]]
Counts = Counter[tuple[str, ReceiptStatus]]

FORMAT = 1


def written(parts: Sequence[tuple[Part, str]], early: Early, counts: Counts) -> bytes:
    """Everything. `parts`: each with what its figures depend on, see `Outcomes`; they are of use for nothing else."""
    arrays: dict[str, Any] = {}
    for index, ((series, quality), _) in enumerate(parts):
        arrays |= {f"{index}.series.{name}": array for name, array in series.arrays().items()}
        arrays |= {f"{index}.quality.{name}": array for name, array in quality.arrays().items()}
    described = {
        "format": FORMAT,
        "parts": [[*series.key, series.arm, judged_by] for (series, _), judged_by in parts],
        "counts": [[model, status.value, count] for (model, status), count in counts.items()],
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


def read(document: bytes, fresh: Callable[[VersionKey, str, str], Part | None]) -> tuple[list[Part], Early, Counts]:
    """What `written` was given. `fresh`: an empty part for a version, arm and what its figures depend on; None leaves it out.

    Raises: ValueError.
    """
    try:
        with np.load(BytesIO(document), allow_pickle=False) as archive:
            arrays: dict[str, NDArray[Any]] = dict(archive)
        described = json.loads(arrays["about"].tobytes())
        if described["format"] != FORMAT:
            raise ValueError(f"outcomes were kept in format {described['format']}, and this is {FORMAT}")
        parts = []
        for index, (model, version, arm, judged_by) in enumerate(described["parts"]):
            part = fresh(VersionKey(model, version), arm, judged_by)
            if part is not None:
                series, quality = part
                series.restore(_of(arrays, f"{index}.series."))
                quality.restore(_of(arrays, f"{index}.quality."))
                parts.append(part)
        counts = Counter({(model, ReceiptStatus(status)): count for model, status, count in described["counts"]})
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
