"""Who is sampled: the same everywhere, at the stated rate, and independently of how traffic is split."""

import numpy as np
import pytest
from scipy.stats import binom, chi2
from xxhash import xxh3_64_intdigest

from server.core.hashing import id_hash
from server.monitoring.choose import ANONYMOUS, chosen, draws

NAMES = [f"request-{number}" for number in range(40_000)]
IDS = np.array([id_hash(name) for name in NAMES], dtype=np.uint64)
CAME = np.arange(len(IDS), dtype=np.int64) + 10**15


def test_the_same_request_is_chosen_again_whenever_it_comes_and_beside_whomever() -> None:
    once = draws(IDS, CAME, 7)
    order = np.random.default_rng(1).permutation(len(IDS))
    assert (draws(IDS[order], CAME + 5, 7) == once[order]).all()
    assert (draws(IDS[17:18], CAME[:1], 7) == once[17:18]).all()


def test_the_numbers_are_those_that_others_may_compute() -> None:
    # published: whoever joins outcomes elsewhere must come to the same decision
    ids = np.array([id_hash("request-1"), id_hash("a")], dtype=np.uint64)
    assert ids.tolist() == [0xE624CFABAD83834E, 0xD24EC4F1A98C6E5B]
    assert draws(ids, np.zeros(2, dtype=np.int64), 0x6D6F6E69746F72).tolist() == [
        each ^ 0x6D6F6E69746F72 for each in ids.tolist()
    ]


@pytest.mark.parametrize("seed", [0, 1, 0x6D6F6E69746F72, 2**64 - 1])
def test_draws_are_uniform(seed: int) -> None:
    counts = np.bincount((draws(IDS, CAME, seed) >> np.uint64(54)).astype(np.int64), minlength=1024)
    expected = len(IDS) / 1024
    assert chi2.sf(((counts - expected) ** 2 / expected).sum(), 1023) > 1e-6


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.37, 1.0])
def test_as_many_are_chosen_as_was_said(rate: float) -> None:
    found = int(chosen(draws(IDS, CAME, 3), rate).sum())
    assert binom.ppf(1e-7, len(IDS), rate) <= found <= binom.ppf(1 - 1e-7, len(IDS), rate)


def test_a_higher_rate_only_adds_requests() -> None:
    drawn = draws(IDS, CAME, 3)
    assert not (chosen(drawn, 0.01) & ~chosen(drawn, 0.02)).any()


def test_being_sampled_says_nothing_about_the_arm() -> None:
    # with one hash for both, everybody in a sample of 1 % would be among the 10 % that a challenger gets
    sampled = chosen(draws(IDS, CAME, 0x6D6F6E69746F72), 0.05)
    hashes = [xxh3_64_intdigest(f"experiment\0{name}".encode(), 1) for name in NAMES]
    challenger = np.array(hashes, dtype=np.uint64) < np.uint64(2**64 // 10)
    both = int((sampled & challenger).sum())
    assert binom.ppf(1e-7, int(sampled.sum()), 0.1) <= both <= binom.ppf(1 - 1e-7, int(sampled.sum()), 0.1)


def test_requests_without_an_id_are_chosen_by_when_they_came() -> None:
    ids = np.full(len(IDS), ANONYMOUS)
    # all at one instant, and each at its own
    for came in (np.full(len(IDS), 10**15, dtype=np.int64), CAME):
        drawn = draws(ids, came, 3)
        assert len(np.unique(drawn)) == len(ids)
        found = int(chosen(drawn, 0.1).sum())
        assert binom.ppf(1e-7, len(ids), 0.1) <= found <= binom.ppf(1 - 1e-7, len(ids), 0.1)
    mixed = IDS[:10].copy()
    mixed[4] = ANONYMOUS
    assert (draws(mixed, CAME[:10], 3) == draws(IDS[:10], CAME[:10], 3)).tolist() == [place != 4 for place in range(10)]
