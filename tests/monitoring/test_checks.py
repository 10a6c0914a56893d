"""Checks on tiny counts, by hand; pooling; what is tolerated where the baseline is small."""

from math import log

import numpy as np
import pytest
from scipy import stats

from server.monitoring.checks import Harmless, Place, compare, places, pools
from server.monitoring.streams import SUM_SCALE, Category, Cells, Layout, Numeric
from server.statistics.evidence import tolerated_psi
from server.statistics.supported import supported_psi

NUMBER = Numeric("x", "input", (0.0, 1.0), -9.0, 9.0, (-9.0, 9.0), 0.0, 1.0)
TEXT = Category("c", "input", ("a", "b"), (7,))
DISTRIBUTION, MISSING = Place(0, NUMBER, "distribution"), Place(0, NUMBER, "missing")
CATEGORIES = Place(0, TEXT, "distribution")
TOLERANCE = 0.1


def cells(
    bins: list[int],
    *,
    missing: int = 0,
    non_finite: int = 0,
    below: int = 0,
    above: int = 0,
    unseen: int = 0,
    means: list[float] | None = None,
) -> Cells:
    sums = [round(mean * count * SUM_SCALE) for mean, count in zip(means or [0.0] * len(bins), bins, strict=True)]
    return Cells(np.array(bins), missing, non_finite, below, above, unseen, np.array(sums))


@pytest.mark.parametrize(
    ("expected", "rows", "starts"),
    [
        ([20, 20, 20], 15, [0, 1, 2]),  # five of fifteen rows in each
        ([20, 20, 20], 14, [0]),  # 4.67 in each: the first two together have 9.3, and the third joins them
        ([50, 3, 2, 20, 4], 1000, [0, 1, 3]),
        ([0, 0, 100, 0, 0, 100, 0], 1000, [0, 3]),  # a bin that the baseline never had belongs to a neighbour
        ([10, 10], 4, []),
        ([5, 5], 10**6, [0, 1]),  # five of the baseline's own
        ([4, 5], 10**6, [0]),
        ([0, 0], 100, []),
        ([5, 5], 0, []),
    ],
)
def test_sparse_neighbours_are_pooled(expected: list[int], rows: int, starts: list[int]) -> None:
    assert pools(np.array(expected), rows) == starts


def test_a_distribution_of_numbers() -> None:
    """By hand: smoothed shares (a + .5) / (n + .5 B); s = 1/n + 1/m; PSI minus (B - 1) s; PSI / s against ncx2."""
    own, now = cells([4000, 4000, 4000], means=[-1, 0.5, 2]), cells([20, 30, 50], means=[-1, 0.5, 3])
    found = compare(DISTRIBUTION, own, now, Harmless(TOLERANCE, True))
    p = [4000.5 / 12001.5] * 3
    q = [20.5 / 101.5, 30.5 / 101.5, 50.5 / 101.5]
    psi = sum((a - b) * log(a / b) for a, b in zip(p, q, strict=True))
    spread = 1 / 12000 + 1 / 100
    assert (found.baseline, found.window, found.n, found.m) == ((4000,) * 3, (20, 30, 50), 12000, 100)
    assert found.effect == pytest.approx(psi - 2 * spread, rel=1e-12)
    assert found.tolerated == pytest.approx(tolerated_psi(0.1), rel=1e-12)
    evidence = found.evidence
    assert evidence is not None
    assert evidence.df == 2
    assert evidence.statistic == pytest.approx(psi / spread, rel=1e-12)
    assert evidence.p == pytest.approx(stats.ncx2.sf(psi / spread, 2, found.tolerated / spread), rel=1e-9)
    effects = found.effects
    assert effects["kolmogorov_smirnov"] == pytest.approx(2 / 3 - 0.5)
    assert effects["mean_difference"] == pytest.approx((-20 + 15 + 150) / 100 - 0.5)
    # of the baseline (1 + .25 + 4) / 3 - .5 ** 2, of the window (20 + 7.5 + 450) / 100 - 1.45 ** 2
    assert effects["deviation_difference"] == pytest.approx((4.775 - 1.45**2) ** 0.5 - 1.5**0.5)
    # mass 2/15 is carried from -1 to .5, 1/6 on from there to 2, and half of everything from 2 to 3
    assert effects["wasserstein"] == pytest.approx(2 / 15 * 1.5 + 1 / 6 * 1.5 + 0.5)


def test_pooled_bins_are_judged_as_one() -> None:
    own, now = cells([1000, 1, 1000]), cells([60, 0, 40])
    found = compare(DISTRIBUTION, own, now, Harmless(TOLERANCE, True))
    assert found.evidence is not None
    assert found.evidence.df == 1
    same = compare(DISTRIBUTION, cells([1000, 1001]), cells([60, 40]), Harmless(TOLERANCE, True))
    assert same.evidence == found.evidence
    assert same.effect == found.effect
    assert found.window == (60, 0, 40)


@pytest.mark.parametrize(
    ("own", "now"),
    [
        (cells([900, 900, 900]), cells([0, 0, 0], missing=50)),
        (cells([900, 900, 900]), cells([2, 2, 2])),
        (cells([900, 0, 0]), cells([0, 0, 500])),
        (cells([0, 0, 0], missing=900), cells([100, 100, 100])),
    ],
)
def test_what_cannot_be_tested_is_not(own: Cells, now: Cells) -> None:
    found = compare(DISTRIBUTION, own, now, Harmless(TOLERANCE, True))
    assert found.evidence is None
    assert (found.effect, found.tolerated, found.effects) == (0, 0, {})
    assert found.window == tuple(now.bins.tolist())


@pytest.mark.parametrize("rows", [300, 30_000])
def test_a_small_baseline_raises_what_is_tolerated_where_its_error_lasts(rows: int) -> None:
    own, now = cells([rows // 3] * 3), cells([40, 30, 30])
    assert compare(DISTRIBUTION, own, now, Harmless(TOLERANCE, True)).tolerated == supported_psi(0.1, 2, rows)
    assert compare(DISTRIBUTION, own, now, Harmless(TOLERANCE, False)).tolerated == tolerated_psi(0.1)


def test_what_windows_differ_by_anyway_is_tolerated() -> None:
    own, now = cells([1000] * 3), cells([300, 400, 300])
    found = compare(DISTRIBUTION, own, now, Harmless(TOLERANCE, True, 0.05))
    assert found.tolerated == 0.05
    calm = compare(DISTRIBUTION, own, now, Harmless(TOLERANCE, True))
    assert found.evidence is not None
    assert calm.evidence is not None
    assert found.evidence.p > calm.evidence.p
    assert found.effect == calm.effect
    assert compare(CATEGORIES, own, now, Harmless(TOLERANCE, True, 0.05)).tolerated == 0.05
    assert compare(DISTRIBUTION, own, now, Harmless(TOLERANCE, True, 1e-9)).tolerated == calm.tolerated


def test_categories_are_a_table_of_two_rows() -> None:
    own, now = cells([6000, 3000, 1000]), cells([60, 20, 15], unseen=5)
    found = compare(CATEGORIES, own, now, Harmless(TOLERANCE, True))
    assert (found.baseline, found.window) == ((6000, 3000, 1000, 0), (60, 20, 15, 5))
    assert (found.n, found.m) == (10_000, 100)
    assert found.evidence is not None
    # 0.05 of the window's rows are expected unseen: that joins the next larger column
    table = np.array([[1000, 3000, 6000], [20, 20, 60]])
    assert found.evidence.statistic == pytest.approx(stats.chi2_contingency(table, correction=False).statistic, rel=1e-12)
    assert found.evidence.df == 2
    noncentrality = found.tolerated / (1 / 10_000 + 1 / 100)
    assert found.evidence.p == pytest.approx(stats.ncx2.sf(found.evidence.statistic, 2, noncentrality), rel=1e-9)
    assert found.effects["largest_difference"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("own", "now"),
    [
        (cells([900, 90, 0]), cells([0, 0, 0], missing=9)),
        (cells([0, 0, 0]), cells([9, 0, 0])),
        (cells([9, 0, 0]), cells([9, 0, 0])),
    ],
)
def test_categories_that_cannot_be_tested(own: Cells, now: Cells) -> None:
    assert compare(CATEGORIES, own, now, Harmless(TOLERANCE, True)).evidence is None


@pytest.mark.parametrize(
    ("place", "now", "counted"),
    [
        (Place(0, NUMBER, "missing"), cells([1, 2, 3], missing=4, non_finite=5), (11, 4)),
        (Place(0, NUMBER, "non_finite"), cells([1, 2, 3], missing=4, non_finite=5), (10, 5)),
        (Place(0, NUMBER, "out_of_range"), cells([1, 2, 3], missing=4, below=1, above=2), (3, 3)),
        (Place(0, TEXT, "unseen"), cells([1, 2, 3], missing=4, unseen=6), (6, 6)),
    ],
)
def test_rates(place: Place, now: Cells, counted: tuple[int, int]) -> None:
    found = compare(place, cells([3000, 3000, 3000], missing=1000), now, Harmless(TOLERANCE, True))
    assert found.window == counted
    assert found.m == sum(counted)
    assert found.effect == pytest.approx(counted[1] / sum(counted) - found.baseline[1] / found.n)
    assert found.evidence is not None
    assert found.evidence.statistic == counted[1]
    assert (found.evidence.p < 1e-3) == (place.check != "missing")


def test_no_rows_no_rate() -> None:
    assert (
        compare(
            Place(0, NUMBER, "out_of_range"), cells([9, 9, 9]), cells([0, 0, 0], missing=9), Harmless(TOLERANCE, True)
        ).evidence
        is None
    )


def test_which_checks_there_are() -> None:
    layout = Layout((NUMBER, TEXT, Numeric("constant", "input", (), 1.0, 1.0, (1.0, 1.0), 1.0, 1.0)))
    counts = layout.empty()
    counts[layout.slices[0]][:3] = 100
    counts[layout.slices[1]][0] = 300
    counts[layout.slices[2]][0] = 300
    rates = ["missing", "out_of_range", "non_finite"]
    assert list(map(str, places(layout, counts))) == [
        "x:distribution",
        *(f"x:{rate}" for rate in rates),
        "c:missing",
        "c:unseen",
        *(f"constant:{rate}" for rate in rates),
    ]
