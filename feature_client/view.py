"""A view: one pure vectorised function of columns, and everything declared about it. **Pure.**

The training builder, the materialiser and the request path call the same function object on columns of any number of rows;
there is no second form for one row. What it may do is elementwise, row by row: a result that depends on which rows happen to
be computed together would be another value in training than in serving.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from feature_client.aggregation import Aggregation
from feature_client.errors import DefinitionError, EventError
from feature_client.schema import COLUMN_DTYPES, DTYPES, Array, Columns, Entity, EventLog, Feature, check_name, stray

Kind = Literal["stored", "request", "model"]
Policy = Literal["default", "fail"]


@dataclass(frozen=True, eq=False)
class View:
    """One version of a view.

    `kind`: "stored" views are computed from `source` per `entity` and read from the store; "request" views from the call's
    values and from other features; "model" views like those, and from state that `fit` has learnt and a model's bundle holds.
    `inputs`: what the function is given by name: of stored views an `Aggregation` each, of others a type of `DTYPES`.
    `max_age_us`: how old a stored row may be, from its newest event on; 0: any age. `on_missing`, `on_stale`: whether the
    default stands in where there is no row, or an old one, or the request fails.
    """

    name: str
    version: int
    kind: Kind
    inputs: Mapping[str, Aggregation | str]
    features: tuple[Feature, ...]
    function: Callable[..., Mapping[str, Array]]
    entity: Entity | None = None
    source: EventLog | None = None
    max_age_us: int = 0
    on_missing: Policy = "default"
    on_stale: Policy = "default"
    fit: Callable[..., Mapping[str, Array]] | None = None
    ref: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ref", f"{self.name}@{self.version}")
        check_name("a view", self.name)
        if self.version < 1:
            raise DefinitionError(f"the version of the view '{self.name}' must be 1 or more")
        names = [feature.name for feature in self.features]
        if not names or len(set(names)) != len(names):
            raise DefinitionError(f"the view '{self.ref}' must have features, each with a name of its own")
        for name, given in self.inputs.items():
            check_name("an input", name)
            if self.kind == "stored":
                self._check_aggregation(name, given)
            elif not isinstance(given, str) or given not in DTYPES:
                raise DefinitionError(f"the input '{name}' of '{self.ref}' must be a type: one of {', '.join(DTYPES)}")
        if {self.on_missing, self.on_stale} - {"default", "fail"} or self.max_age_us < 0:
            raise DefinitionError(f"'{self.ref}': on_missing and on_stale are 'default' or 'fail', max_age_us at least 0")
        if (self.kind == "model") != (self.fit is not None) or (self.kind == "model" and "state" in self.inputs):
            raise DefinitionError(f"'{self.ref}': model views have 'fit', no others have, and 'state' is what it gives")
        if self.kind == "stored":
            self._check_entity()
        self._check_function()

    def _check_aggregation(self, name: str, given: Aggregation | str) -> None:
        columns = {} if self.source is None else self.source.columns
        if not isinstance(given, Aggregation):
            raise DefinitionError(f"the input '{name}' of the stored view '{self.ref}' must be an aggregation")
        wanted = {"rate": ("bool",), "last": COLUMN_DTYPES}.get(given.kind, ("float64", "int64", "bool"))
        if given.kind != "count" and columns.get(given.column) not in wanted:
            raise DefinitionError(f"the input '{name}' of '{self.ref}' needs a column of type {' or '.join(wanted)}")

    def _check_entity(self) -> None:
        if self.entity is None or self.source is None:
            raise DefinitionError(f"the stored view '{self.ref}' needs an entity and a source")
        for key, dtype in self.entity.keys.items():
            if self.source.columns.get(key) != dtype:
                raise DefinitionError(f"the event log '{self.source.name}' lacks '{key}' ({dtype}), a join key of '{self.ref}'")

    def _check_function(self) -> None:
        wanted = [*self.inputs, *(["state"] if self.kind == "model" else [])]
        if not inspect.isfunction(self.function):
            return  # what is built in may tell nothing about itself
        try:
            inspect.signature(self.function).bind(**dict.fromkeys(wanted))
        except TypeError as error:
            raise DefinitionError(f"the function of '{self.ref}' does not take {', '.join(wanted)}: {error}") from error

    @property
    def names(self) -> tuple[str, ...]:
        """Its features' names, in order."""
        return tuple(feature.name for feature in self.features)

    def compute(self, columns: Columns, state: Columns | None = None) -> dict[str, Array]:
        """The features of N rows, in declared types, in order. `state`: of model views, what `fit` has given.

        Shapes: columns `[N]`; results `[N, *shape]`, C-contiguous. Ownership: the function cannot write to the columns, which
        others read as well; a result may be one of them. Integers that a declared type cannot hold become its nearest.
        Raises: DefinitionError where the function gives anything but what is declared; EventError for columns that are not
        there or not of one length; whatever the function raises.
        """
        given = {name: self._given(name, columns) for name in self.inputs}
        rows = len(next(iter(given.values()))) if given else 0
        if any(len(column) != rows for column in given.values()):
            raise EventError(f"the inputs of '{self.ref}' have different lengths: {', '.join(map(_shown, given.items()))}")
        with np.errstate(all="ignore"):  # nan and inf are values: what becomes of them is for defaults and null policies
            made = self.function(**given) if state is None else self.function(**given, state=state)
        if not isinstance(made, Mapping) or set(made) != set(self.names):
            got = ", ".join(sorted(made)) if isinstance(made, Mapping) else type(made).__name__
            raise DefinitionError(f"'{self.ref}' must give exactly {', '.join(self.names)}; it gave {got}")
        return {feature.name: self._declared(feature, made[feature.name], rows) for feature in self.features}

    def _given(self, name: str, columns: Columns) -> Array:
        if name not in columns:
            raise EventError(f"'{self.ref}' needs the input '{name}'")
        column = np.ascontiguousarray(columns[name]).view()
        column.flags.writeable = False
        return column

    def _declared(self, feature: Feature, made: Any, rows: int) -> Array:
        dtype = DTYPES[feature.dtype]
        if not isinstance(made, np.ndarray) or made.shape != (rows, *feature.shape):
            shape = list(made.shape) if isinstance(made, np.ndarray) else type(made).__name__
            raise DefinitionError(f"'{feature.name}' of '{self.ref}' must be [{rows}, *{list(feature.shape)}], not {shape}")
        # float64 to float32 is what people mean; float to int, or text to number, is a mistake
        if not np.can_cast(made.dtype, dtype, casting="same_kind") or (dtype.kind == "O" and made.dtype.kind not in "OS"):
            raise DefinitionError(f"'{feature.name}' of '{self.ref}' must be {feature.dtype}, not {made.dtype}")
        if dtype.kind in "iu" and not np.can_cast(made.dtype, dtype, casting="safe"):
            # of one row only: wrapping around would be another value, and an error would fail the rows beside it
            limits = np.iinfo(dtype)
            made = np.minimum(made, limits.max) if made.dtype.kind == "u" else np.clip(made, limits.min, limits.max)
        with np.errstate(all="ignore"):
            column = np.ascontiguousarray(made, dtype=dtype)
        if (wrong := stray(column)) is not None:
            got = f"{type(column[wrong]).__name__} in row {wrong}"
            raise DefinitionError(f"'{feature.name}' of '{self.ref}' must be bytes or None, not {got}")
        return column


def _shown(item: tuple[str, Array]) -> str:
    return f"{item[0]} {list(item[1].shape)}"


def feature_view(
    *,
    features: Sequence[Feature],
    inputs: Mapping[str, Aggregation | str],
    version: int = 1,
    name: str = "",
    entity: Entity | None = None,
    source: EventLog | None = None,
    fit: Callable[..., Mapping[str, Array]] | None = None,
    max_age_us: int = 0,
    on_missing: Policy = "default",
    on_stale: Policy = "default",
) -> Callable[[Callable[..., Mapping[str, Array]]], View]:
    """Make a function a view: a stored one with `entity` and `source`, a model view with `fit`, else a request view.

    The function takes the inputs by name and gives a mapping of its features. `name`: the function's unless stated.
    Raises: DefinitionError.
    """
    kind: Kind = "stored" if entity is not None or source is not None else "model" if fit is not None else "request"

    def make(function: Callable[..., Mapping[str, Array]]) -> View:
        return View(
            name or function.__name__,
            version,
            kind,
            dict(inputs),
            tuple(features),
            function,
            entity,
            source,
            max_age_us,
            on_missing,
            on_stale,
            fit,
        )

    return make
