"""Run every batch size once before anyone waits for it, and keep what it costs. **Pure** over a backend and a clock. Floor 2.

The samples are zeros, then other harmless contents, until one runs. A model that runs on none of them (it wants a real
image, or an index that exists) still serves: its costs are 0, which means "not measured", and are learnt from its first
executions. Dimensions that vary per request are 1 unless settings fix them, so such costs are a lower bound at first; where
they are padded, each size is measured for itself.
"""

from collections.abc import Sequence
from itertools import chain, product

from server.backends.base import Backend
from server.backends.samples import PLAIN_FIRST, Attempt, sample_inputs, worth_trying
from server.core.clock import NS_PER_S, Clock
from server.core.errors import BackendDead, BackendFailed, LoadFailed

NOT_MEASURED = 0
ENOUGH_NS = NS_PER_S
"""A bucket that has executed for this long is not executed again: repeating helps against noise, of which a slow model has
little, and would hold up its load for minutes."""


def warm(backend: Backend, buckets: Sequence[int], runs: int, clock: Clock) -> tuple[int, ...]:
    """The fastest of `runs` executions per bucket (fewer of a slow one, see `ENOUGH_NS`), never decreasing with rows or size;
    all `NOT_MEASURED` if no sample runs. The buckets of the smallest size class come first, where inputs are padded.

    Noise only ever adds time, and more rows never cost less, nor do larger ones; so a bucket costs at most what any larger one
    was seen to, of its own size or of a larger one.

    Units: rows in, nanoseconds out.
    Raises: LoadFailed when a larger bucket fails on the very content a smaller one ran on: the version could not keep
    its promise of that batch size. BackendDead.

    >>> _never_decreasing([50, 40, 90])
    (40, 40, 90)
    """
    sizes = backend.signature.pad_sizes or (None,)
    for attempt in worth_trying(backend.signature, PLAIN_FIRST):
        fastest: list[int] = []
        for size, rows in product(sizes, buckets):
            try:
                fastest.append(_fastest(backend, rows, size, attempt, runs, clock))
            except BackendDead:
                raise
            except BackendFailed as error:
                if fastest:
                    what = f"{rows} rows" if size is None else f"{rows} rows of size {size}"
                    least = f"{buckets[0]}" if size is None else f"{buckets[0]} of size {sizes[0]}"
                    raise LoadFailed(f"warm-up with {what} failed although {least} ran: {error}") from error
                break
        else:
            return _by_size(fastest, len(buckets))
    return (NOT_MEASURED,) * (len(sizes) * len(buckets))


def _fastest(backend: Backend, rows: int, size: int | None, attempt: Attempt, runs: int, clock: Clock) -> int:
    inputs = sample_inputs(backend.signature, rows, *attempt, size=size)
    taken: list[int] = []
    while len(taken) < runs and sum(taken) < ENOUGH_NS:
        begun = clock()
        backend.run(inputs)
        taken.append(max(1, clock() - begun))
    return min(taken)


def _by_size(fastest: Sequence[int], buckets: int) -> tuple[int, ...]:
    """The times of each size in turn, none above that of as many rows of a larger size.

    >>> _by_size([50, 40, 30, 90], 2)
    (30, 40, 30, 90)
    """
    sizes = [_never_decreasing(fastest[first : first + buckets]) for first in range(0, len(fastest), buckets)]
    return tuple(chain.from_iterable(zip(*map(_never_decreasing, zip(*sizes, strict=True)), strict=True)))


def _never_decreasing(fastest: Sequence[int]) -> tuple[int, ...]:
    costs = list(fastest)
    for index in range(len(costs) - 2, -1, -1):
        costs[index] = min(costs[index], costs[index + 1])
    return tuple(costs)
