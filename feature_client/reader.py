"""Reading rows for serving: remembered ones first, then the store in one call, and no error whatever the store does.

Rows of all views that a batch needs are asked for together. A store that fails costs statuses, not the batch; one that keeps
failing is left alone (`breaker`) but for a probe now and then. Nothing is tried again: the budget is gone by then.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from feature_client.breaker import Breaker, Passage, State
from feature_client.cache import RowCache
from feature_client.errors import StoreError, StorePartial, StoreTimeout
from feature_client.forking import start_anew_in_children
from feature_client.row import unpack
from feature_client.schema import Status
from feature_client.served import Found
from feature_client.store import Store
from feature_client.view import View

_log = logging.getLogger(__name__)
_ROW_TYPES = {bytes, type(None)}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Rows of one stored view. `stamp`: of the fingerprint they must have; `keys`: from `keys.row_keys`, also repeated ones."""

    view: View
    stamp: int
    keys: list[bytes]


@dataclass(frozen=True, slots=True)
class ViewReading:
    """What was found for one view since the start: number of rows by the name of their status."""

    ref: str
    rows: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class StoreReading:
    """What the store was asked since the start, and how it stands.

    `calls`: that reached the store; `failures`: how often rows had to be served without it: "timeout", "error", "partial" (some
    keys were answered), "refused_by_breaker", "no_budget". `keys_asked`: in those calls; `keys_fresh`: answered from memory;
    `keys_stale`: old rows that stood in after a failure. `seconds`: in calls. `breaker`: its state. `remembered_*`: what memory
    holds now.
    """

    store: str
    calls: int
    failures: Mapping[str, int]
    keys_asked: int
    keys_fresh: int
    keys_stale: int
    seconds: float
    breaker: str
    remembered_rows: int
    remembered_bytes: int


class Reader:
    """Thread-safe; in a forked child it starts with nothing in memory. Ownership: cache and breaker belong to this reader from
    now on; the store is closed by whoever opened it.

    `judged_budget_s`: a call with less that times out says more about the caller than about the store, and does not count
    against it: one impatient caller must not take the store away from the others.
    """

    def __init__(
        self,
        store: Store,
        cache: RowCache | None = None,
        breaker: Breaker | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        judged_budget_s: float = 0.001,
    ) -> None:
        """`cache` None: nothing is remembered. `clock`: seconds, for ages in memory, not for ages of rows."""
        self._store = store
        self._cache = RowCache(0) if cache is None else cache
        self._remembers = cache is not None
        self._breaker = breaker or Breaker()
        self._clock = clock
        self._judged_budget_s = judged_budget_s
        self._statuses: dict[str, NDArray[np.int64]] = {}
        self._failures = {"timeout": 0, "error": 0, "partial": 0, "refused_by_breaker": 0, "no_budget": 0}
        self._calls = self._keys_asked = self._keys_fresh = self._keys_stale = 0
        self._seconds = 0.0
        self.start_anew()
        start_anew_in_children(self)

    def start_anew(self) -> None:
        """Have a lock of its own, and nothing in memory that another thread was just changing."""
        self._lock = threading.Lock()  # over all above; never held while the store is asked
        self._cache.clear()

    def read(self, wanted: Sequence[Wanted], budget_s: float, *, remembered: bool = True) -> list[Found]:
        """The rows of every view that is wanted, in order. Returns within the budget, as far as the store keeps to it.

        `remembered=False`: for a call that states its own instant: rows are neither taken from memory nor kept there. Where the
        store does not answer the status is TIMEOUT, unless memory has a row that may stand in.
        Never raises for what the store does.
        """
        now_s = self._clock()
        remembered = remembered and self._remembers
        known = self._fresh(wanted, now_s) if remembered else {}
        keys = chain.from_iterable(each.keys for each in wanted)
        asked = list(dict.fromkeys(key for key in keys if key not in known) if known else dict.fromkeys(keys))
        answers, unanswered = self._ask(asked, budget_s, now_s) if asked else ([], ())
        left_out: set[bytes] = set()
        if unanswered:
            left_out = {asked[at] for at in unanswered}
            known.update(each for each in zip(asked, answers, strict=True) if each[0] not in left_out)
            found = self._found_without(wanted, known, list(left_out), now_s if remembered else None)
        elif len(wanted) == 1 and len(asked) == len(wanted[0].keys):  # all of them, each once, in order
            found = [unpack(wanted[0].view, wanted[0].stamp, answers)]
        else:
            known.update(zip(asked, answers, strict=True))
            found = [unpack(each.view, each.stamp, [known[key] for key in each.keys]) for each in wanted]
        counts = [np.bincount(each.row_status, minlength=len(Status)) for each in found]
        if remembered and len(unanswered) < len(asked):
            left_out |= _damaged(wanted, found, counts)
            rows = zip(asked, answers, strict=True)
            with self._lock:
                self._cache.remember((each for each in rows if each[0] not in left_out) if left_out else rows, now_s)
        with self._lock:
            for each, count in zip(wanted, counts, strict=True):
                self._statuses[each.view.ref] = self._statuses.get(each.view.ref, 0) + count
        return found

    def readings(self) -> Sequence[ViewReading]:
        """Rows by status, of every view that was ever read. Counted before `serve`: rows, not values."""
        with self._lock:
            counts = [(ref, statuses.tolist()) for ref, statuses in self._statuses.items()]
        return [ViewReading(ref, {status.name: each[status] for status in Status if each[status]}) for ref, each in counts]

    def store_reading(self) -> StoreReading:
        """How the store has done."""
        with self._lock:
            return StoreReading(
                self._store.name,
                self._calls,
                dict(self._failures),
                self._keys_asked,
                self._keys_fresh,
                self._keys_stale,
                self._seconds,
                self._breaker.state.value,
                len(self._cache),
                self._cache.bytes,
            )

    def _fresh(self, wanted: Sequence[Wanted], now_s: float) -> dict[bytes, bytes | None]:
        known: dict[bytes, bytes | None] = {}
        with self._lock:
            for each in wanted:
                known |= self._cache.fresh(each.keys, now_s, self._cache.ttl_s(each.view))
            self._keys_fresh += len(known)
        return known

    def _ask(self, keys: list[bytes], budget_s: float, now_s: float) -> tuple[list[bytes | None], Sequence[int]]:
        """What the store has under these keys, and the positions of those that it did not answer."""
        with self._lock:
            passage = self._breaker.ask(now_s) if budget_s > 0 else Passage.REFUSED
            if passage is Passage.REFUSED:
                self._failures["refused_by_breaker" if budget_s > 0 else "no_budget"] += 1
                return [None] * len(keys), range(len(keys))
        started_s = self._clock()
        outcome = self._outcome(keys, budget_s)
        ended_s = self._clock()
        with self._lock:
            self._calls += 1
            self._keys_asked += len(keys)
            self._seconds += ended_s - started_s
            if outcome.failure:
                self._failures[outcome.failure] += 1
            before = self._breaker.state
            if outcome.failure != "timeout" or budget_s >= self._judged_budget_s:
                # a part of the store is worth asking: what to do about the other part is for the store itself
                self._breaker.tell(passage, outcome.failure in ("", "partial"), ended_s)
            after = self._breaker.state
        if before is not State.CLOSED and after is State.CLOSED:
            _log.info("the store %s answers again", self._store.name)
        elif before is State.CLOSED and after is not State.CLOSED:  # and not once more for every probe
            _log.warning("the store %s keeps failing and is left alone but for probes: %s", self._store.name, outcome.reason)
        return outcome.rows, outcome.unanswered

    def _outcome(self, keys: list[bytes], budget_s: float) -> "_Outcome":
        try:
            try:
                outcome = _Outcome(self._store.read(keys, budget_s))
            except StorePartial as error:
                outcome = _Outcome(error.rows, error.unanswered, "partial", str(error))
            if len(outcome.rows) != len(keys) or not set(map(type, outcome.rows)) <= _ROW_TYPES:
                raise TypeError(f"{self._store.name} must answer {len(keys)} keys by as many rows of bytes, or None")
            if any(not 0 <= at < len(keys) for at in outcome.unanswered):
                raise IndexError(f"{self._store.name} was asked for {len(keys)} keys, and left others unanswered")
            return outcome
        except StoreTimeout as error:
            failure, reason = "timeout", str(error)
        except StoreError as error:
            failure, reason = "error", str(error)
        except Exception as error:  # noqa: BLE001 - a bug in a store must not take the batch with it
            _log.exception("the store %s has a bug", self._store.name)
            failure, reason = "error", repr(error)
        return _Outcome([None] * len(keys), range(len(keys)), failure, reason)

    def _found_without(
        self,
        wanted: Sequence[Wanted],
        known: dict[bytes, bytes | None],
        unanswered: list[bytes],
        now_s: float | None,
    ) -> list[Found]:
        """Where some keys were not answered. `now_s` None: memory must not stand in."""
        if now_s is not None:
            with self._lock:
                stale = self._cache.stale(unanswered, now_s)
                self._keys_stale += len(stale)
            known.update(stale)
        found = []
        for each in wanted:
            rows = unpack(each.view, each.stamp, [known.get(key) for key in each.keys])
            # a key that is known to have no row is NOT_FOUND, also now
            rows.row_status[[key not in known for key in each.keys]] = Status.TIMEOUT
            found.append(rows)
        return found


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Of one call: rows, None also where nobody answered; the positions of those; the kind of failure, "" if none, and why."""

    rows: list[bytes | None]
    unanswered: Sequence[int] = ()
    failure: str = ""
    reason: str = ""


def _damaged(wanted: Sequence[Wanted], found: Sequence[Found], counts: Sequence[NDArray[np.int64]]) -> set[bytes]:
    """Keys of rows that must not be remembered: whoever writes them anew should be seen at once."""
    damaged: set[bytes] = set()
    for each, rows, count in zip(wanted, found, counts, strict=True):
        if count[Status.FP_MISMATCH]:
            damaged |= {each.keys[at] for at in np.flatnonzero(rows.row_status == Status.FP_MISMATCH).tolist()}
    return damaged
