"""What values must be, beside types and shapes: constraints, compiled once per version, checked for whole batches. **Pure.**

Floor 1. A constraint that cannot be meant (an input that there is not, numbers of texts) is refused when its version is loaded;
`allowed` says what is, element by element.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_client.schema import Status
from server.core.allowed import Test, kinds_of, said_of, test_of
from server.core.monitoring_settings import Constraint, ValidationSettings
from server.core.signature import Signature
from server.core.tensors import Array, TensorSpec

Rows = NDArray[np.bool_]
_NO_PACKED: Mapping[str, Sequence[str]] = {}


class Place(NamedTuple):
    """Where values are: an array of a batch, and which element of its rows; None all of them."""

    array: str
    column: int | None


class Breach(NamedTuple):
    """One constraint that some rows break. `stream`: the input, or one column of it. Shapes: `rows` bool `[N]`."""

    stream: str
    constraint: str
    said: str
    rows: Rows


@dataclass(frozen=True, slots=True)
class Check:
    """One constraint on one input.

    `test` None: values cannot break it, only being absent can. `brought`: where callers bring the values, the first that is
    there; `made`: where they are else, once features are joined. `statuses`: the features that must be found for them.
    `absent`: whether an input that is left out breaks it.
    """

    stream: str
    constraint: str
    said: str
    test: Test | None
    brought: tuple[Place, ...]
    made: Place | None
    statuses: tuple[int, ...]
    absent: bool


class Constraints:
    """The constraints of one version. A cost per batch: a few us for each of them, whatever the requests."""

    def __init__(self, checks: Sequence[Check], *, reject: bool, batching: bool) -> None:
        self.checks = tuple(checks)
        self.reject = reject
        """Whether requests that break one are refused, or answered and counted."""
        self._batching = batching

    @property
    def action(self) -> str:
        """What becomes of a request that breaks one, as settings say it."""
        return "reject" if self.reject else "count"

    def brought(self, arrays: Mapping[str, Array], rows: int) -> list[Breach]:
        """What callers' own values break. Shapes: `arrays` `[P, ...]`, of which the first `rows` are real; without a batch
        dimension `[...]`, and one row."""
        found: list[Breach] = []
        for check in self.checks:
            place = _first(check.brought, arrays)
            if place is not None:
                found += self._broken(check, place, arrays, rows, None)
            elif check.absent and not check.statuses:
                found.append(Breach(check.stream, check.constraint, check.said, np.ones(rows, dtype=np.bool_)))
        return found

    def made(self, names: Collection[str], arrays: Mapping[str, Array], statuses: NDArray[np.uint8], rows: int) -> list[Breach]:
        """What features break that callers did not bring. Shapes: `arrays` `[P, ...]`, the inputs of the model; `statuses`
        `[N, F]`. `names`: the inputs that callers brought."""
        found: list[Breach] = []
        for check in self.checks:
            if check.statuses and _first(check.brought, names) is None:
                own = statuses[:, check.statuses]
                absent: Rows | None = np.any(own > Status.GIVEN, axis=1) if check.absent else None
                found += self._broken(check, check.made, arrays, rows, absent)
        return found

    def _broken(
        self, check: Check, place: Place | None, arrays: Mapping[str, Array], rows: int, absent: Rows | None
    ) -> Iterator[Breach]:
        broken = absent
        if place is not None and check.test is not None:
            array: NDArray[Any] = arrays[place.array]
            elements = (array[:rows] if self._batching else array).reshape(rows, -1)
            values = check.test(elements if place.column is None else elements[:, place.column : place.column + 1])
            if values.any():
                rowwise: Rows = np.any(values, axis=1)
                broken = rowwise if absent is None else rowwise | absent
        if broken is not None and broken.any():
            yield Breach(check.stream, check.constraint, check.said, broken)


def _first(places: Sequence[Place], names: Collection[str]) -> Place | None:
    return next((place for place in places if place.array in names), None)


def constraints_of(
    settings: ValidationSettings,
    signature: Signature,
    model: Signature,
    features: Sequence[str] = (),
    packed: Mapping[str, Sequence[str]] = _NO_PACKED,
) -> Constraints | None:
    """The constraints of a version; None where it states none.

    `signature`: what callers bring, `model`: what the model takes; the same without features. `features` in the order of
    statuses, `packed`: of inputs that several of them make up, one in each column.
    Raises: ValueError for a constraint that does not fit these, or that nothing could meet.
    """
    known = _Known(signature, model, tuple(features), packed)
    checks = [check for constraint in settings.inputs for check in _checks(constraint, known)]
    stated = [(each.name, each.column, kind) for each in settings.inputs for kind in kinds_of(each)]
    for name, column, kind in stated:
        if stated.count((name, column, kind)) > 1:
            raise ValueError(f"{kind} is stated twice for {_stream(name, column)!r}")
    if not settings.inputs:
        return None
    return Constraints(checks, reject=settings.action == "reject", batching=bool(model.max_batch))


class _Known(NamedTuple):
    """What a version's constraints can be on."""

    signature: Signature
    model: Signature
    features: tuple[str, ...]
    packed: Mapping[str, Sequence[str]]

    def brought(self, name: str, column: int | None) -> Iterator[Place]:
        """Where callers may bring it: by its own name, or as a column of what it is packed into."""
        yield Place(name, column)
        yield from self._columns(name)

    def made(self, name: str, column: int | None) -> Place | None:
        """Where features leave it for the model; None where they do not."""
        if name in self.packed or (name in self.features and name in self.model.input_names):
            return Place(name, column)
        return next(self._columns(name), None)

    def statuses(self, name: str, column: int | None) -> tuple[int, ...]:
        """The features that it is made of."""
        names = self.packed.get(name, (name,) if name in self.features else ())
        chosen = names if column is None or name not in self.packed else names[column : column + 1]
        return tuple(self.features.index(each) for each in chosen)

    def _columns(self, name: str) -> Iterator[Place]:
        return (Place(whole, names.index(name)) for whole, names in self.packed.items() if name in names)


def _stream(name: str, column: int | None) -> str:
    return name if column is None else f"{name}[{column}]"


def _checks(constraint: Constraint, known: _Known) -> Iterator[Check]:
    name, column = constraint.name, constraint.column
    spec = known.signature.input_names.get(name)
    if spec is None:
        raise ValueError(f"'{name}' is neither an input nor a feature; inputs are {', '.join(known.signature.input_names)}")
    if column is not None:
        _check_column(spec, column)
    made, statuses = known.made(name, column), known.statuses(name, column)
    for kind in kinds_of(constraint):
        test = test_of(constraint, kind, spec)
        if made is None and statuses and kind != "complete":
            raise ValueError(f"the feature '{name}' does not reach the model itself: only complete can be stated for it")
        absent = kind == "complete"
        if test is not None or absent:
            places = tuple(known.brought(name, column))
            yield Check(_stream(name, column), kind, said_of(constraint, kind), test, places, made, statuses, absent)


def _check_column(spec: TensorSpec, column: int) -> None:
    if -1 in spec.shape:
        raise ValueError(f"column {column} of '{spec.name}': rows of shape {list(spec.shape)} have no fixed columns")
    if column >= prod(spec.shape):
        raise ValueError(f"column {column} of '{spec.name}': its rows have {prod(spec.shape)} elements, counted from 0")
