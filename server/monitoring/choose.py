"""Which requests are sampled: the same ones in every replica, at every retry, and for whoever joins their outcomes. **Pure.**

Floor 4. A request is chosen by the hash of its id and a seed that nothing else is decided by: if traffic were split by the same
number, a sample of 1 % would all come from one arm. A higher rate chooses all that a lower one does.
"""

import numpy as np
from numpy.typing import NDArray

from server.core.hashing import id_hash

ANONYMOUS = np.uint64(id_hash(""))
"""The hash of all requests without an id. They cannot be recognised, and are chosen by when they came."""

_HALF = np.uint64(32)
# odd constants of splitmix64
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ALL = 2**64


def draws(id_hashes: NDArray[np.uint64], arrival_ns: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A number for each request, uniform below 2**64, that depends on its id and the seed alone; without an id, on its instant.

    Shapes: all `[B]`. The hash of an id is uniform already, in all its bits: the seed has only to turn it.

    >>> import numpy as np
    >>> draws(np.array([0b1100], np.uint64), np.array([7]), 0b1010).tolist() == [0b0110]
    True
    """
    drawn: NDArray[np.uint64] = id_hashes ^ np.uint64(seed)
    anonymous = id_hashes == ANONYMOUS
    if np.count_nonzero(anonymous):
        # those of one batch may have come at one instant: their place tells them apart
        mixed = arrival_ns.view(np.uint64) + (np.arange(len(arrival_ns), dtype=np.uint64) << _HALF)
        for odd in (_FIRST, _SECOND):
            mixed ^= mixed >> _HALF
            mixed *= odd
        drawn = np.where(anonymous, drawn ^ mixed, drawn)
    return drawn


def chosen(drawn: NDArray[np.uint64], rate: float) -> NDArray[np.bool_]:
    """Who is sampled at this rate, the probability of each. Shapes: `[B]`."""
    below = int(rate * _ALL)
    return drawn < np.uint64(below) if below < _ALL else np.ones(len(drawn), dtype=np.bool_)
