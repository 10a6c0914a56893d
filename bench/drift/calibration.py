"""Whether p-values are what they say: how often they are small when nothing has changed, or as much as is tolerated.

Counts are drawn from their own law, which is faster than from rows and the same: the baseline's edges are its own deciles, so
that what a window finds between two of them is a share that is Dirichlet-distributed.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from server.statistics.distances import psi
from server.statistics.evidence import homogeneity_evidence, psi_evidence, tolerated_psi

BINS, BASELINE, TOLERATED_SD = 10, 100_000, 0.1
PSI_BAND, HOMOGENEITY_BAND = (0.0004, 0.003), (0.04, 0.06)
"""Of windows without change: those below 0.001 and below 0.05."""
_SIZES = (500, 1000, 10_000)
_PAIRS = ((500, 500), (1000, 1000), (1000, 200))
_CATEGORIES = 8


def calibration(repeats: int, seed: int) -> list[dict[str, Any]]:
    """Rates over `repeats` windows, each with a baseline of its own, beside the band that each must lie in (None: none is
    stated).
    """
    random = np.random.default_rng(seed)
    rows = []
    for m in _SIZES:
        rows.append(_row("psi", m, BASELINE, 0.001, PSI_BAND, _psi(random, repeats, m, 0.0)))
        # at the edge of what is tolerated, where a rate of 0.05 is due and no more
        rows.append(_row("psi, shifted as tolerated", m, BASELINE, 0.05, None, _psi(random, repeats, m, TOLERATED_SD)))
    for n, m in _PAIRS:
        rows.append(_row("homogeneity", m, n, 0.05, HOMOGENEITY_BAND, _homogeneity(random, repeats, n, m)))
    return rows


def _row(test: str, m: int, n: int, level: float, band: tuple[float, float] | None, p: NDArray[np.float64]) -> dict[str, Any]:
    rate = float((p < level).mean())
    low, high = band or (0.0, 1.0)
    return {
        "test": test,
        "baseline_rows": n,
        "rows": m,
        "windows": len(p),
        "level": level,
        "rate": rate,
        "band": band,
        "met": None if band is None else low <= rate <= high,
    }


def _psi(random: np.random.Generator, repeats: int, m: int, shift_sd: float) -> NDArray[np.float64]:
    """p-values of PSI on deciles; without a shift nothing is tolerated, so that the law itself is what is looked at."""
    own = np.full(BINS, BASELINE // BINS)
    tolerated = tolerated_psi(shift_sd)
    made = np.empty(repeats)
    for place in range(repeats):
        shares = random.dirichlet(own)
        edges = ndtri(np.cumsum(shares)[:-1])
        moved = np.diff(ndtr(edges - shift_sd), prepend=0.0, append=1.0)
        distance = psi(own, random.multinomial(m, moved))
        made[place] = psi_evidence(distance, BINS, BASELINE, m, tolerated).p
    return made


def _homogeneity(random: np.random.Generator, repeats: int, n: int, m: int) -> NDArray[np.float64]:
    shares = 1.0 / np.arange(1, _CATEGORIES + 1)
    shares /= shares.sum()
    drawn = zip(random.multinomial(n, shares, repeats), random.multinomial(m, shares, repeats), strict=True)
    return np.array([homogeneity_evidence(before, after, 0.0).p for before, after in drawn])
