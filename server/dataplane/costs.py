"""How long will a batch take? A table measured at warm-up, corrected by what really happened. **Pure.**

Mean and mean deviation per bucket follow Jacobson's estimator (SIGCOMM 1988): gain 1/8 for the mean, 1/4 for the deviation.
The prediction is mean plus deviation, because admitting what then comes late costs more than it gains.
"""

from bisect import bisect_left

from server.core.clock import NS_PER_S

TRIAL_AFTER_NS = NS_PER_S
"""Once predictions alone have refused work for this long, one batch runs regardless: a prediction that is too high could
otherwise never be corrected, because nothing would run to correct it."""

TRIAL_SPACING = 20
TRIAL_AT_LATEST_NS = 30 * NS_PER_S
"""Where the prediction is right, a trial is a batch that comes too late: so many times its own cost apart, trials take at
most 5 % of the device. But a prediction may also be absurd, so they never wait longer than this."""


class Estimate:
    """How long something takes: mean plus mean deviation of what was observed. Units: ns. 0 until the first observation."""

    __slots__ = ("_deviation_ns", "_mean_ns")

    def __init__(self, first_ns: int = 0) -> None:
        self._mean_ns = float(first_ns)
        self._deviation_ns = 0.0

    def predict_ns(self) -> int:
        """What to count on."""
        return int(self._mean_ns + self._deviation_ns)

    def observe(self, took_ns: int) -> None:
        """Learn from one observation."""
        if self._mean_ns == 0.0:
            self._mean_ns = float(took_ns)
            return
        error = took_ns - self._mean_ns
        self._mean_ns += error / 8
        self._deviation_ns += (abs(error) - self._deviation_ns) / 4

    def at_most(self, other: "Estimate") -> None:
        """Predict no more than `other` does."""
        if self.predict_ns() > other.predict_ns():
            self._mean_ns, self._deviation_ns = other._mean_ns, other._deviation_ns


class CostModel:
    """Predicted execution time by rows, of one size class.

    Units: rows; ns. Ownership: one queue, under its data plane's lock.
    """

    __slots__ = ("_buckets", "_estimates", "_refusing_since_ns")

    def __init__(self, buckets: tuple[int, ...], costs_ns: tuple[int, ...]) -> None:
        self._buckets = buckets
        self._estimates = [Estimate(cost) for cost in costs_ns]
        self._refusing_since_ns: list[int | None] = [None] * len(buckets)

    def predict_ns(self, rows: int) -> int:
        """Predicted time of one execution of `rows` rows; 0 where nothing was measured for its bucket.

        >>> CostModel((1, 4), (100, 250)).predict_ns(3)
        250
        """
        return self._estimates[bisect_left(self._buckets, rows)].predict_ns()

    def observe(self, rows: int, took_ns: int, now_ns: int) -> None:
        """Learn from one execution of `rows` rows that has ended now.

        Smaller buckets learn with it: more rows never cost less. Larger ones do not, or small batches that run would hide
        for ever that a large one is refused wrongly.
        """
        index = bisect_left(self._buckets, rows)
        estimate = self._estimates[index]
        if self.on_trial(rows, now_ns - took_ns) and took_ns < estimate.predict_ns():
            # what was learnt has just been proven wrong: at one trial a second, means would take half a minute to say so
            estimate = self._estimates[index] = Estimate(took_ns)
        else:
            estimate.observe(took_ns)
        for smaller in range(index):
            self._estimates[smaller].at_most(estimate)
        self._refusing_since_ns[: index + 1] = [None] * (index + 1)

    def refused(self, rows: int, now_ns: int) -> None:
        """Note that the prediction for `rows` rows alone refused work."""
        index = bisect_left(self._buckets, rows)
        if self._refusing_since_ns[index] is None:
            self._refusing_since_ns[index] = now_ns

    def on_trial(self, rows: int, now_ns: int) -> bool:
        """Whether predictions for `rows` rows must be ignored until as many have run (see `TRIAL_AFTER_NS`)."""
        index = bisect_left(self._buckets, rows)
        since_ns = self._refusing_since_ns[index]
        if since_ns is None:
            return False
        spacing_ns = min(TRIAL_SPACING * self._estimates[index].predict_ns(), TRIAL_AT_LATEST_NS)
        return now_ns - since_ns >= max(TRIAL_AFTER_NS, spacing_ns)
