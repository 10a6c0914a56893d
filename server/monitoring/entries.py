"""What one entry of the stream of samples says beside samples: how many rows there were, and what was true of some. **Pure.**

Floor 4. Bytes as in `codec`: looked at field by field, and a ValueError where they are not as they must be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from server.core.versions import VersionKey
from server.monitoring.framing import Fields, framed, number, text
from server.monitoring.outcome import Outcome

_OFFERED_MAGIC, _OUTCOMES_MAGIC, _VERSION = b"PdOf", b"PdOu", 1
_MAX_ITEMS = 65_536


@dataclass(frozen=True, slots=True)
class Offered:
    """Rows of one version and arm that were chosen, and those of them that no sink will ever get, about `time_us`."""

    key: VersionKey
    arm: str
    offered: int
    dropped: int
    time_us: int


def encode_offered(counts: Sequence[Offered]) -> bytes:
    """Their blob. Raises: ValueError for more than 65,536, and for numbers that do not fit."""
    fields = [number("I", _bounded(len(counts)))]
    for each in counts:
        fields += [text(each.key.model), number("Q", each.key.version), text(each.arm)]
        fields += [number("Q", each.offered), number("Q", each.dropped), number("q", each.time_us)]
    return framed(_OFFERED_MAGIC, _VERSION, fields)


def decode_offered(blob: bytes) -> tuple[Offered, ...]:
    """The counts of a blob. Raises: ValueError for what `encode_offered` did not write."""
    fields = Fields(blob, _OFFERED_MAGIC, _VERSION)
    found = tuple(
        Offered(_key(fields), fields.text(), _amount(fields), _amount(fields), fields.integer("q"))
        for _ in range(_bounded(fields.integer("I")))
    )
    fields.end()
    return found


def encode_outcomes(outcomes: Sequence[Outcome]) -> bytes:
    """Their blob. Raises: ValueError for more than 65,536, and for what does not fit."""
    fields = [number("I", _bounded(len(outcomes)))]
    for each in outcomes:
        fields += [text(each.model), number("Q", each.version), text(each.prediction_id)]
        fields += [number("I", each.row), number("d", each.label), number("q", each.observed_us)]
    return framed(_OUTCOMES_MAGIC, _VERSION, fields)


def decode_outcomes(blob: bytes) -> tuple[Outcome, ...]:
    """The outcomes of a blob. Raises: ValueError for what `encode_outcomes` did not write."""
    fields = Fields(blob, _OUTCOMES_MAGIC, _VERSION)
    found = tuple(_outcome(fields) for _ in range(_bounded(fields.integer("I"))))
    fields.end()
    return found


def _outcome(fields: Fields) -> Outcome:
    model, version, prediction_id = fields.text(), fields.integer("Q"), fields.text()
    row, label, observed_us = fields.integer("I"), fields.real(), fields.integer("q")
    if not model or not isfinite(label) or observed_us < 0:
        raise ValueError(f"an outcome of model '{model}' with label {label}, observed at {observed_us}")
    return Outcome(model, version, prediction_id, row, label, observed_us)


def _key(fields: Fields) -> VersionKey:
    key = VersionKey(fields.text(), fields.integer("Q"))
    if not key.model or not key.version:
        raise ValueError("it names no version of a model")
    return key


def _amount(fields: Fields) -> int:
    amount = fields.integer("Q")
    if amount >= 2**62:  # sums of them stay int64
        raise ValueError(f"{amount} rows")
    return amount


def _bounded(items: int) -> int:
    if items > _MAX_ITEMS:
        raise ValueError(f"{items} items in one blob: at most {_MAX_ITEMS}")
    return items
