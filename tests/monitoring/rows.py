"""Sampled rows for tests of their ways."""

from typing import Any

import numpy as np

from server.core.versions import VersionKey
from server.monitoring.samples import Samples

KEY = VersionKey("fraud", 3)


def rows_of(count: int, seed: int = 0, *, key: VersionKey = KEY, arm: str = "champion", first_us: int = 10**15) -> Samples:
    """Rows with columns of every kind: numbers of all widths, texts, booleans, one and several elements, None."""
    generator = np.random.default_rng(seed)
    texts: Any = np.empty((count, 2), dtype=object)
    for row in range(count):
        texts[row] = generator.bytes(row % 5), (None if row % 3 else b"")
    amounts = generator.normal(size=count).astype(np.float32)
    amounts[: count // 4] = np.nan
    return Samples(
        key=key,
        arm=arm,
        epoch=7,
        weight=0.25,
        time_us=first_us + np.arange(count, dtype=np.int64),
        id_hash=generator.integers(0, 2**64, count, dtype=np.uint64),
        row=np.arange(count, dtype=np.int32),
        inclusion=np.full(count, 0.05),
        queue_us=generator.integers(0, 10**6, count),
        execute_us=np.full(count, 812),
        inputs={
            "amount": amounts,
            "flags": generator.random((count, 1)) < 0.5,
            "pixels": generator.integers(0, 256, (count, 2, 3), dtype=np.uint8),
            "half": generator.normal(size=(count, 2)).astype(np.float16),
        },
        callers={"user": texts, "at": np.full(count, -5)},
        outputs={"score": generator.random(count)},
        features=("amount", "age"),
        statuses=generator.choice(np.array([0, 1, 0x82, 0x86], dtype=np.uint8), (count, 2)),
    )


def equal(one: Samples, other: Samples) -> bool:
    """Whether two are the same to the bit, dtypes and shapes included."""
    plain = ("key", "arm", "epoch", "weight", "features")
    arrays = ("time_us", "id_hash", "row", "inclusion", "queue_us", "execute_us", "statuses")
    return (
        all(getattr(one, name) == getattr(other, name) for name in plain)
        and all(_same(getattr(one, name), getattr(other, name)) for name in arrays)
        and all(
            list(getattr(one, name)) == list(getattr(other, name))
            and all(_same(array, getattr(other, name)[column]) for column, array in getattr(one, name).items())
            for name in ("inputs", "callers", "outputs")
        )
    )


def _same(one: Any, other: Any) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(one.tolist() == other.tolist()) if one.dtype == object else one.tobytes() == other.tobytes()
