"""Which model, which version, and the states a version passes through. **Pure.**

The transitions are a table: code that moves a version calls `advance`, the test walks every edge.
"""

from enum import StrEnum
from typing import NamedTuple


class VersionKey(NamedTuple):
    """One immutable version of one model. `version` is an integer > 0, as on disk."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"{self.model}:{self.version}"


class State(StrEnum):
    """The lifecycle states of a version; the values are the words RepositoryIndex answers with."""

    UNKNOWN = "UNKNOWN"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.UNKNOWN: frozenset({State.LOADING, State.UNAVAILABLE}),
    State.LOADING: frozenset({State.READY, State.UNAVAILABLE}),
    State.READY: frozenset({State.UNLOADING, State.UNAVAILABLE}),
    State.UNLOADING: frozenset({State.UNAVAILABLE}),
    State.UNAVAILABLE: frozenset({State.LOADING}),
}


def advance(current: State, following: State) -> State:
    """Return `following` if the table allows it.

    Raises: ValueError for a transition that is not in `TRANSITIONS` (a bug, never a caller's mistake).

    >>> advance(State.LOADING, State.READY)
    <State.READY: 'READY'>
    """
    if following not in TRANSITIONS[current]:
        raise ValueError(f"no transition from {current} to {following}")
    return following
