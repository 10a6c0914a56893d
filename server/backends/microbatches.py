"""Texts of one batch in microbatches of like length, so that little is executed for nobody. **Pure.** Floor 2.

A microbatch is one execution: as many rows as a row bucket says, each of as many tokens as a token bucket says. Filling a short
text up to the longest of its batch would waste most of the device; one for each length would cost an execution each.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice


@dataclass(frozen=True, slots=True)
class Microbatch:
    """One execution. `rows`: places in the batch, longest text first. Units: `padded_rows` rows, `tokens` tokens per row."""

    rows: tuple[int, ...]
    padded_rows: int
    tokens: int


def fitting(sizes: Sequence[int], size: int) -> int:
    """The smallest of ascending `sizes` that is not below `size`; the largest where all are."""
    return sizes[min(bisect_left(sizes, size), len(sizes) - 1)]


def microbatches(lengths: Sequence[int], token_buckets: Sequence[int], row_buckets: Sequence[int]) -> list[Microbatch]:
    """Every row in exactly one; both kinds of buckets ascending, no length above the last token bucket.

    From the longest text down: all that need the same token bucket, at most as many as the last row bucket. Rows that would be
    padding take the next shorter texts instead: they cost nothing there.

    >>> microbatches([3, 16, 30, 5, 9], (16, 32), (1, 2, 4))
    [Microbatch(rows=(2,), padded_rows=1, tokens=32), Microbatch(rows=(1, 4, 3, 0), padded_rows=4, tokens=16)]
    """
    order = iter(sorted(range(len(lengths)), key=lambda row: -lengths[row]))
    waiting = [fitting(token_buckets, length) for length in lengths]
    left = {tokens: waiting.count(tokens) for tokens in token_buckets}
    found: list[Microbatch] = []
    for tokens in reversed(token_buckets):
        while left[tokens]:
            padded_rows = fitting(row_buckets, left[tokens])
            rows = tuple(islice(order, padded_rows))
            for row in rows:
                left[waiting[row]] -= 1
            found.append(Microbatch(rows, padded_rows, tokens))
    return found


def padding(formed: Sequence[Microbatch], lengths: Sequence[int]) -> tuple[int, int]:
    """Tokens of the texts, and tokens that are executed beside them only to fill them.

    >>> padding([Microbatch((0, 1), 4, 16)], [10, 3])
    (13, 51)
    """
    real = sum(lengths)
    return real, sum(each.padded_rows * each.tokens for each in formed) - real
