"""For tests of one's own definitions: that serving gives, at every instant, the bytes that training had.

The events are pushed into a store as they become known, and after each push what the store then holds is compared with what the
training set's builder finds at that instant. What a definition must not do (look at other rows, at a clock, at anything that
changes) shows as a difference.
"""

import numpy as np

from feature_client.fingerprint import fingerprint, stamp_of
from feature_client.golden_rows import shown, unequal
from feature_client.keys import row_keys
from feature_client.point_in_time import find, history_of
from feature_client.retained import available_us
from feature_client.row import unpack
from feature_client.schema import Array, Columns
from feature_client.served import Found, serve
from feature_client.store import Store
from feature_client.stream import Push
from feature_client.view import View

_READ_S = 5.0
_FOREVER_US = 2**62


def assert_parity(view: View, events: Columns, keys: Columns, store: Store, *, batch: int = 1, project: str = "parity") -> int:
    """Raise AssertionError at the first bit in which the store differs from the builder; how many rows were compared.

    `events`: a log of the view's source. `keys`: the entities to read, `[N]`. `batch`: how many events are pushed at once, and
    how many rows are read at once; events that become known at one instant are all pushed before anything is read. Rows stay in
    the store under `project`, where rows of this view must not be yet.
    Raises: AssertionError, EventError, EntityError, DefinitionError, ContractError, StoreError.
    """
    history = history_of(view, events)
    assert view.source is not None  # or it would have no history
    # a replay is not told off for instants that lie ahead of the clock, and nothing is forgotten on the way
    mark, wanted = fingerprint(view), row_keys(project, view, keys)
    push = Push(store, project, [view], {view.ref: mark}, now_us=lambda: _FOREVER_US, lateness_us=_FOREVER_US)
    instants = available_us(view.source, events)
    order = np.argsort(instants, kind="stable")
    compared = begin = 0
    while begin < len(order):
        at_us = int(instants[order[min(begin + batch, len(order)) - 1]])
        end = int(np.searchsorted(instants[order], at_us, side="right"))
        push.push(view.source.name, {name: events[name][order[begin:end]] for name in view.source.columns})
        built = find(history, keys, np.full(len(wanted), at_us))  # of all at once, however few are read at once
        for first in range(0, len(wanted), batch):
            part = slice(first, first + batch)
            held = unpack(view, stamp_of(mark), store.read(wanted[part], _READ_S))
            _compare(view, {name: column[part] for name, column in keys.items()}, at_us, held, _part(built, part))
        compared += len(wanted)
        begin = end
    return compared


def _part(found: Found, part: slice) -> Found:
    values = {name: column[part] for name, column in found.values.items()}
    return Found(values, found.nulls[part], found.row_status[part], found.event_us[part], found.available_us[part])


def _compare(view: View, keys: Columns, at_us: int, held: Found, built: Found) -> None:
    for what in ("row_status", "event_us", "available_us"):
        _same(view, what, keys, at_us, getattr(held, what), getattr(built, what))
    served, trained = serve(view, held, at_us), serve(view, built, at_us)
    for index, name in enumerate(view.names):
        _same(view, name, keys, at_us, served.values[name], trained.values[name])
        _same(view, f"status of {name}", keys, at_us, served.statuses[:, index], trained.statuses[:, index])


def _same(view: View, what: str, keys: Columns, at_us: int, held: Array, built: Array) -> None:
    differ = np.flatnonzero(unequal(held, built))
    if len(differ):
        row = int(differ[0])
        entity = ", ".join(f"{name}={column[row]!r}" for name, column in keys.items())
        raise AssertionError(
            f"'{view.ref}' at {at_us}, {entity}: {what} is {shown(held[row])} in the store, {shown(built[row])} by the builder"
        )
