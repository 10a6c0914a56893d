"""The ideal queue against published and computed figures; the search for the highest rate; what counts as met."""

import doctest
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.gpu import ideal_queue, ratios
from bench.gpu.ideal_queue import Tau, ideal_p99_s, latencies, linear, poisson
from bench.gpu.ratios import COUNTS, Found, Probe, highest_load, merged, passes, ratio

GPU, MLP = linear(1.2e-3, 13e-6, 128), linear(60e-6, 0.3e-6, 1024)
GPU_RATE, MLP_RATE = 128 / 2.864e-3, 1024 / 367.2e-6


@pytest.mark.parametrize("module", [ideal_queue, ratios], ids=lambda module: module.__name__)
def test_examples(module: ModuleType) -> None:
    assert doctest.testmod(module) == doctest.TestResults(0, {ideal_queue: 1, ratios: 4}[module])


@pytest.mark.parametrize(
    ("tau", "cap", "rate", "load", "mean_ms", "p99_ms"),
    [
        (GPU, 128, GPU_RATE, 0.05, 1.85, 2.49),
        (GPU, 128, GPU_RATE, 0.2, 2.05, 2.76),
        (GPU, 128, GPU_RATE, 0.5, 2.56, 3.51),
        (GPU, 128, GPU_RATE, 0.8, 3.40, 4.73),
        (GPU, 128, GPU_RATE, 0.95, 4.11, 5.82),
        (MLP, 1024, MLP_RATE, 0.01, 0.088, 0.121),
        (MLP, 1024, MLP_RATE, 0.5, 0.156, 0.212),
        (MLP, 1024, MLP_RATE, 0.95, 0.448, 0.616),
    ],
)
def test_the_simulated_figures_of_the_design(
    tau: Tau, cap: int, rate: float, load: float, mean_ms: float, p99_ms: float
) -> None:
    seconds = 2e5 / (rate * load)
    arrivals = poisson(rate * load, seconds, 1)
    took_ms = latencies(arrivals, tau, cap)[len(arrivals) // 10 :] * 1e3
    assert took_ms.mean() == pytest.approx(mean_ms, rel=0.03)
    assert np.percentile(took_ms, 99) == pytest.approx(p99_ms, rel=0.04)
    assert ideal_p99_s(rate * load, tau, cap, seconds, 1) * 1e3 == pytest.approx(np.percentile(took_ms, 99), rel=0.01)


@pytest.mark.parametrize("load", [0.5, 0.8, 0.9])
def test_the_closed_form_without_a_largest_batch(load: float) -> None:
    """Inoue 2019, arXiv 1912.06322."""
    t0, a = 1.2e-3, 13e-6
    rate = load / a
    one = (a + t0) / (2 * (1 - load)) * (1 + 2 * rate * t0 + (1 - rate * t0) / (1 + load))
    other = 1.5 * t0 / (1 - load) + (a / 2) * (load + 2) / (1 - load**2)
    arrivals = poisson(rate, 10, 3)
    mean = latencies(arrivals, linear(t0, a, 10_000), 10_000)[len(arrivals) // 10 :].mean()
    assert mean == pytest.approx(min(one, other), rel=0.02)


def test_arrivals_are_a_poisson_process_and_the_same_each_time() -> None:
    times = poisson(1000, 50, 4)
    assert len(times) == pytest.approx(50_000, rel=0.02)
    gaps = np.diff(times)
    assert gaps.min() >= 0
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.02)
    assert np.array_equal(times, poisson(1000, 50, 4))
    assert not np.array_equal(times[:100], poisson(1000, 50, 5)[:100])


def test_times_between_sizes_that_were_measured() -> None:
    stairs = Tau((1, 4, 5, 8), (1.0, 1.0, 2.0, 2.0), (1.5, 1.5, 2.5, 1.0))
    busy, answer = stairs.tables(10)
    assert busy.tolist() == [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]
    # answers are never there before the device is free: such a measurement was noise
    assert answer.tolist() == [1.5, 1.5, 1.5, 1.5, 1.5, 2.5, 2, 2, 2, 2, 2]
    one, _ = Tau((1,), (3.0,), (3.0,)).tables(2)
    assert one.tolist() == [3, 3, 3]
    assert linear(1.0, 0.5, 1).rows == (1,)


def test_answers_come_after_the_device_is_free_for_the_next() -> None:
    took = latencies(np.array([0.0, 0.0, 0.1]), Tau((1,), (1.0,), (1.5,)), 1)
    assert took.round(6).tolist() == [1.5, 2.5, 3.4]


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=200),
    st.integers(1, 16),
    st.floats(1e-3, 1.0),
    st.floats(0, 0.1),
)
@settings(deadline=None)
def test_nothing_waits_while_the_device_is_free(arrivals: list[float], cap: int, t0: float, row: float) -> None:
    times = np.array(sorted(arrivals))
    took = latencies(times, linear(t0, row, cap), cap)
    assert (took >= t0 + row - 1e-9).all()
    # one by one, each taking as long as a full batch, nobody would be answered sooner than here
    slow, order = t0 + row * cap, np.arange(len(times))
    alone = np.maximum.accumulate(times - order * slow) + (order + 1) * slow
    assert (times + took <= alone + 1e-9).all()


def searched(limit: float, void_at: tuple[int, ...] = (), repeats: bool = True) -> tuple[Found, list[float]]:
    tried: list[float] = []

    def attempt(load: float) -> Probe:
        tried.append(load)
        return Probe(load, load <= limit, len(tried) - 1 in void_at, {})

    return highest_load(attempt, lambda: repeats), tried


@pytest.mark.parametrize("limit", [0.52, 0.7, 0.9, 0.93, 0.985])
def test_the_highest_rate_is_found_from_below(limit: float) -> None:
    found, tried = searched(limit)
    assert tried[0] == 0.9
    assert found.load is not None
    assert limit - 0.014 < found.load <= limit
    assert [probe.load for probe in found.probes] == tried
    assert len(tried) == 6


def test_a_server_that_cannot_do_half_of_it_has_no_highest_rate() -> None:
    found, tried = searched(0.4)
    assert found.load is None
    assert min(tried) > 0.5


def test_a_void_try_is_made_again_and_never_counts_as_passed() -> None:
    once, tried = searched(1.0, void_at=(0,))
    assert tried[:2] == [0.9, 0.9]
    assert not once.void
    assert once.load is not None
    assert once.load > 0.99
    hurried, tried = searched(1.0, void_at=(0,), repeats=False)
    assert hurried.void
    assert tried[1] < 0.9
    twice, _ = searched(1.0, void_at=(0, 1))
    assert twice.void
    assert twice.load is not None
    assert twice.load < 0.9


def test_nothing_due_is_nothing_passed() -> None:
    assert not passes({"requests": 3, "settling": 3, "right": 0, "latency_us": {"p99": 0.0}}, 1.0)


@pytest.mark.parametrize(
    ("name", "value", "met"),
    [("r1", 0.9, True), ("r1", 0.899, False), ("r3", 1.26, False), ("r5", 150.0, True), ("r6", None, False)],
)
def test_what_is_required(name: str, value: float | None, met: bool) -> None:
    assert ratio(name, value)["met"] is met
    assert "met" not in ratio(name, value, {})
    assert ratio(name, value, {name: 0.0})["met"] is (value is not None and name not in ("r3", "r5"))


def test_clients_side_by_side() -> None:
    def report(p99: float, void: bool, errors: dict[str, int]) -> dict[str, Any]:
        times = {"count": 5, "p99": p99}
        return dict.fromkeys(COUNTS, 2) | {
            "latency_us": times,
            "lateness_us": times,
            "errors": errors,
            "first_error": "full" if errors else "",
            "void": void,
        }

    both = merged([report(3.0, False, {}), report(2.0, True, {"14": 2}), report(1.0, False, {"14": 1, "4": 1})])
    assert (both["requests"], both["latency_us"]) == (6, {"p99": 3.0, "count": 15})
    assert (both["errors"], both["first_error"], both["void"], both["clients"]) == ({"14": 3, "4": 1}, "full", True, 3)
