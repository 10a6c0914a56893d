"""The views that one model reads, in the order they are computed in: the one way from found rows to features. **Pure.**

The training builder and the server both end here; they differ only in who found the rows of the stored views.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from feature_client.errors import DefinitionError, EventError
from feature_client.schema import DEFAULTED, DTYPES, Array, Columns, Feature, Status, stray
from feature_client.served import Served, Statuses, default_of, nulls_of
from feature_client.view import View

States = Mapping[str, Columns]
"""What `fit` of each model view has given, by the view's reference."""


@dataclass(frozen=True)
class Assembled:
    """Every feature of N rows. Shapes: `values` `[N, *shape]` by name; `statuses` uint8 `[N]` by name; `refused` bool `[N]`."""

    values: dict[str, Array]
    statuses: dict[str, Statuses]
    refused: NDArray[np.bool_]


class FeatureSet:
    """Stored views first, then request and model views, each after those whose features it is given.

    `request`: what the call itself has to bring, with types; `keys`: the join keys of the stored views, with types.
    """

    def __init__(self, views: Sequence[View], states: States | None = None) -> None:
        """`states`: for every model view; copies are kept, which nothing can change.

        Raises: DefinitionError for names that stand twice, circles, other types, states that are no arrays.
        """
        self.states: States = {ref: frozen(ref, state) for ref, state in (states or {}).items()}
        self.stored = tuple(view for view in views if view.kind == "stored")
        self.features: dict[str, Feature] = {}
        self.view_of: dict[str, View] = {}
        self.keys: dict[str, str] = {}
        for view in views:
            for feature in view.features:
                if feature.name in self.features:
                    raise DefinitionError(f"both '{self.view_of[feature.name].ref}' and '{view.ref}' have '{feature.name}'")
                self.features[feature.name], self.view_of[feature.name] = feature, view
        for view in self.stored:
            for key, dtype in ({} if view.entity is None else view.entity.keys).items():
                if self.keys.setdefault(key, dtype) != dtype:
                    raise DefinitionError(f"the join key '{key}' has two types")
        self.computed = self._ordered([view for view in views if view.kind != "stored"])
        self.request: dict[str, str] = {}
        for view in self.computed:
            if not view.inputs:
                raise DefinitionError(f"the view '{view.ref}' has no inputs: how many rows it has would be unknown")
            for name, wanted in view.inputs.items():
                self._check_input(view, name, str(wanted))
        for key in self.keys.keys() & self.request.keys():
            if self.keys[key] != self.request[key]:
                raise DefinitionError(
                    f"'{key}' has two types: {self.keys[key]} as a join key, {self.request[key]} of the request"
                )
        self.views = (*self.stored, *self.computed)

    def _ordered(self, views: list[View]) -> tuple[View, ...]:
        ordered: list[View] = []
        made = {name for view in self.stored for name in view.names}
        later = {name for view in views for name in view.names}
        while views:
            ready = [view for view in views if not (set(view.inputs) & later) - made]
            if not ready:
                raise DefinitionError(f"these views wait for each other: {', '.join(view.ref for view in views)}")
            ordered += ready
            made |= {name for view in ready for name in view.names}
            views = [view for view in views if view not in ready]
        return tuple(ordered)

    def _check_input(self, view: View, name: str, dtype: str) -> None:
        if name in self.features:
            made = self.features[name]
            if made.dtype != dtype or made.shape:
                raise DefinitionError(f"the input '{name}' of '{view.ref}' is {dtype}, but the feature is {made.dtype}")
        elif self.request.setdefault(name, dtype) != dtype:
            raise DefinitionError(f"'{name}' of the request has two types: {self.request[name]} and {dtype}")

    def assemble(self, rows: int, request: Columns, given: Columns, stored: Mapping[str, Served]) -> Assembled:
        """Every feature of N rows.

        `request` has what `self.request` names; `given` has features that the caller states itself, `stored` the rest of the
        stored ones by view (a view all of whose features are given may be missing).
        Raises: EventError for columns of another type; DefinitionError as `View.compute` does.
        """
        values: dict[str, Array] = {}
        statuses: dict[str, Statuses] = {}
        refused = np.zeros(rows, dtype=np.bool_)
        for name in given.keys() & self.features.keys():
            self._check_given(name, given[name], rows)
        for view in self.stored:
            served = stored.get(view.ref)
            for index, feature in enumerate(view.features):
                if feature.name in given:
                    values[feature.name] = given[feature.name]
                    statuses[feature.name] = np.full(rows, Status.GIVEN, np.uint8)
                elif served is not None:
                    values[feature.name], statuses[feature.name] = served.values[feature.name], served.statuses[:, index]
                else:
                    raise EventError(f"there are no rows of '{view.ref}', and '{feature.name}' is not given")
            if served is not None and not set(view.names) <= given.keys():
                refused |= served.refused
        for view in self.computed:
            self._compute(view, rows, request, given, values, statuses)
        return Assembled(values, statuses, refused)

    def _check_given(self, name: str, column: Array, rows: int) -> None:
        feature = self.features[name]
        if column.dtype != DTYPES[feature.dtype] or column.shape != (rows, *feature.shape) or stray(column) is not None:
            got = f"{column.dtype} {list(column.shape)}"
            raise EventError(f"the given '{name}' is {got}, not {feature.dtype} {[rows, *feature.shape]}")

    def _state(self, view: View) -> Columns | None:
        if view.kind != "model":
            return None
        if view.ref not in self.states:
            raise DefinitionError(f"the model view '{view.ref}' has no state: it has to be fitted first")
        return self.states[view.ref]

    def inputs_of(self, view: View, rows: int, request: Columns, values: Columns) -> dict[str, Array]:
        """What a computed view is given: features of other views, and what the call brings. Raises: EventError."""
        return {name: values[name] if name in self.features else _typed(name, request, view, rows) for name in view.inputs}

    def _compute(
        self,
        view: View,
        rows: int,
        request: Columns,
        given: Columns,
        values: dict[str, Array],
        statuses: dict[str, Statuses],
    ) -> None:
        if all(name in given for name in view.names):
            made: Mapping[str, Array] = {}
            known = np.zeros(rows, np.uint8)
        else:
            made = view.compute(self.inputs_of(view, rows, request, values), self._state(view))
            known = _worst([statuses[name] for name in view.inputs if name in self.features], rows)
        for feature in view.features:
            if feature.name in given:
                values[feature.name] = given[feature.name]
                statuses[feature.name] = np.full(rows, Status.GIVEN, np.uint8)
                continue
            column, status = made[feature.name], known.copy()
            nulls = nulls_of(feature, column)
            if nulls.any():
                # null because of what was worse is that
                status[nulls & (status & ~np.uint8(DEFAULTED) < Status.NULL)] = Status.NULL
                if feature.null == "default":
                    status[nulls] |= DEFAULTED
                    where = nulls.reshape(len(nulls), *(1 for _ in feature.shape))
                    column = np.ascontiguousarray(np.where(where, default_of(feature), column))
            values[feature.name], statuses[feature.name] = column, status


def frozen(ref: str, state: Columns) -> Columns:
    """What `fit` has given, as a bundle keeps it: row-major copies, read-only. Raises: DefinitionError for anything else."""
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and type(array) is np.ndarray for name, array in state.items()
    ):
        raise DefinitionError(f"the state of '{ref}' must be NumPy arrays by name")
    copies = {name: np.array(array, order="C") for name, array in state.items()}
    for array in copies.values():
        array.flags.writeable = False
    return MappingProxyType(copies)


def _typed(name: str, request: Columns, view: View, rows: int) -> Array:
    column = request.get(name)
    wanted = str(view.inputs[name])
    if column is None or column.dtype != DTYPES[wanted] or column.shape != (rows,):
        got = "is missing" if column is None else f"is {column.dtype} {list(column.shape)}"
        raise EventError(f"the request's '{name}' {got}; '{view.ref}' needs {wanted} [{rows}]")
    if (at := stray(column)) is not None:
        raise EventError(f"the request's '{name}' has {type(column[at]).__name__} in row {at}, not bytes or None")
    return column


def _worst(statuses: Sequence[Statuses], rows: int) -> Statuses:
    """By rank, whether or not a default stood in; what is computed is a value of its own, so GIVEN does not pass on."""
    if not statuses:
        return np.zeros(rows, np.uint8)
    # the rank first, then whether a default stood in: the order of the inputs must not matter
    ranked = np.stack([(status & ~np.uint8(DEFAULTED)) << 1 | status >> 7 for status in statuses]).max(axis=0)
    worst: Statuses = ranked >> 1 | ranked << 7
    worst[worst == Status.GIVEN] = Status.PRESENT
    return worst
