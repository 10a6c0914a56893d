"""A version's claim to a part of its device's time. **Pure.**

A bucket of device time fills at the rate of the share and is emptied by what the version executes. While there is anything in
it the version has a claim, and goes before versions with less of one: a neighbour's burst then reaches it only as the one batch
that is running, and as the turns the neighbour gets when the share is used up.

That bounds the wait, not its ratio to a wait without neighbours. Simulated with `bench.simulate`: 25 ms deadlines, a share of
one half each, a neighbour that offers 75 % of the device's capacity and a version that offers 40 %. Its p99 is 1.15 times the
p99 it has alone where each execution holds one request (2 ms), and 2.4 times where batches fill (1.2 ms + 13 us a row, 128
rows); without shares 3.4 and 7.7 times, and one answer in eight is lost. Keeping the neighbour's batches short as well would
bring the latter to 1.6 times at best, and the neighbour to a tenth of its throughput: it was tried and left out.
"""

from server.core.clock import NS_PER_MS

BURST_NS = 50 * NS_PER_MS
"""Device time a version may save up while it does not use its share: a few of the largest batches."""


class Share:
    """Device time that may be claimed. Units: ns. Ownership: one queue, under its data plane's lock."""

    __slots__ = ("_at_ns", "_left_ns", "_share")

    def __init__(self, share: float) -> None:
        self._share = share
        self._left_ns: float = BURST_NS
        self._at_ns: int | None = None

    def claim(self, now_ns: int) -> float:
        """How much of a claim there is: 0 none, 1 a full bucket."""
        if not self._share:
            return 0.0
        if self._at_ns is not None:
            self._left_ns = min(BURST_NS, self._left_ns + self._share * max(now_ns - self._at_ns, 0))
        self._at_ns = now_ns
        return max(self._left_ns, 0.0) / BURST_NS

    def use(self, took_ns: int, now_ns: int) -> None:
        """The device has been used for `took_ns`. No more than a bucket is ever owed."""
        if self._share:
            self.claim(now_ns)
            self._left_ns = max(self._left_ns - took_ns, -BURST_NS)
