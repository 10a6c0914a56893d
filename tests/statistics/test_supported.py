"""What a baseline's own error is, and what must be tolerated because of it."""

import numpy as np
import pytest
from scipy import stats

from server.statistics.evidence import tolerated_psi
from server.statistics.supported import UNLUCKY, supported_psi


@pytest.mark.parametrize(("bins", "n"), [(10, 2000), (4, 500), (40, 20_000)])
def test_the_error_of_a_baseline_is_a_chi_square(bins: int, n: int) -> None:
    """The PSI between 4,000 baselines and the truth: its mean, and how often it is beyond the quantile that is allowed for."""
    generator = np.random.default_rng(3)
    share = np.full(bins, 1 / bins)
    drawn = (generator.multinomial(n, share, size=4000) + 0.5) / (n + bins / 2)
    errors = ((drawn - share) * np.log(drawn / share)).sum(axis=1)
    df = bins - 1
    # a mean of 4,000 has a standard deviation of sqrt(2 df) / n / sqrt(4000); the law itself holds to order 1 / n
    assert errors.mean() == pytest.approx(df / n, abs=5 * (2 * df) ** 0.5 / n / 4000**0.5 + 5 * df / n**2 * bins)
    beyond = int((errors > stats.chi2.isf(0.05, df) / n).sum())
    low, high = stats.binom.interval(0.9999, 4000, 0.05)
    assert low <= beyond <= high


def test_what_is_supported() -> None:
    """By hand, of 1,000 rows in 10 bins: (sqrt h + sqrt d)^2 - 9 / 1000."""
    harmless, error = tolerated_psi(0.05), stats.chi2.isf(UNLUCKY, 9) / 1000
    assert supported_psi(0.1, 9, 1000) == pytest.approx((harmless**0.5 + error**0.5) ** 2 - 0.009, rel=1e-12)
    assert supported_psi(0.1, 9, 10_000) == tolerated_psi(0.1)
    assert supported_psi(0.1, 9, 9000) > tolerated_psi(0.1)


def test_more_rows_support_less() -> None:
    supported = [supported_psi(0.1, 9, n) for n in (10, 100, 1000, 3000, 10**6)]
    assert supported == sorted(supported, reverse=True)
