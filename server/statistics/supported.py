"""What a baseline of so many rows can tell apart from its own error. **Pure.**

Floor 1. A baseline is a sample too. Every window that is compared with it meets the same error, which a detector of many
windows adds up; the 1/n in a window's p-value speaks of errors that are drawn anew each time.
"""

from functools import lru_cache
from math import sqrt

from scipy import special

from server.statistics.evidence import tolerated_psi

UNLUCKY = 1e-3
"""The share of streams whose baseline may be further off than what is allowed for."""


@lru_cache(maxsize=4096)
def supported_psi(sd: float, df: int, n: int) -> float:
    """The PSI to tolerate so that no window in which a shift of `sd` / 2 is all that happened is evidence of more.

    The PSI between a baseline of n rows in df + 1 bins and the truth is chi-square / n: at most d for all but `UNLUCKY`
    streams. For small differences the root of a PSI is a distance, so together with a shift of PSI h it is at most (sqrt h +
    sqrt d)^2. The null law of a window's PSI expects what is tolerated plus df (1/n + 1/m), the truth given the baseline that
    sum plus df / m. So (sqrt h + sqrt d)^2 - df / n is enough; of many rows it is less than the PSI of `sd` itself, which is
    returned then.

    >>> [round(supported_psi(0.1, 9, n), 4) for n in (1000, 5000, 20_000)]
    [0.0376, 0.0135, 0.0096]
    """
    harmless, error = tolerated_psi(sd / 2), float(special.chdtri(df, UNLUCKY)) / n
    return max(tolerated_psi(sd), (sqrt(harmless) + sqrt(error)) ** 2 - df / n)
