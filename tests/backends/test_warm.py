from collections.abc import Mapping

import pytest

from server.backends.warm import ENOUGH_NS, warm
from server.core.errors import BackendDead, BackendFailed, LoadFailed
from server.core.signature import Signature
from server.core.tensors import Array, TensorSpec


class Timed:
    """Takes the next of the given times for each execution, and fails where it is told to."""

    platform = "test"
    device = "cpu"

    def __init__(self, times: Mapping[int, list[int]], shape: tuple[int, ...] = (2,), max_batch: int = 64) -> None:
        spec = TensorSpec("x", "INT64", shape)
        self.signature = Signature("m", (spec,), (spec,), max_batch)
        self.times = {rows: list(taken) for rows, taken in times.items()}
        self.now = 0
        self.seen: list[tuple[int, ...]] = []
        self.wants: int | None = None
        self.error: dict[int, BackendFailed] = {}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        x = inputs["x"]
        self.seen.append(x.shape)
        if self.wants is not None and not (x == self.wants).all():
            raise BackendFailed("index out of range")
        rows = x.shape[0] if self.signature.max_batch else 1
        if rows in self.error:
            raise self.error[rows]
        self.now += self.times[rows].pop(0)
        return {"x": x}

    def memory_bytes(self) -> int:
        return 0

    def close(self) -> None:
        return

    def clock(self) -> int:
        return self.now


def test_the_fastest_run_of_every_bucket() -> None:
    backend = Timed({1: [30, 10, 20], 8: [40, 50, 60]})
    assert warm(backend, (1, 8), 3, backend.clock) == (10, 40)
    assert backend.seen == [(1, 2)] * 3 + [(8, 2)] * 3


def test_a_slow_bucket_is_not_run_again_and_again() -> None:
    backend = Timed({1: [ENOUGH_NS // 2, ENOUGH_NS // 2 + 1, 7], 8: [ENOUGH_NS, 7, 7]})
    assert warm(backend, (1, 8), 3, backend.clock) == (ENOUGH_NS // 2, ENOUGH_NS)
    assert backend.seen == [(1, 2)] * 2 + [(8, 2)]


def test_costs_never_decrease_with_rows() -> None:
    backend = Timed({1: [70], 2: [50], 4: [60], 8: [55]})
    assert warm(backend, (1, 2, 4, 8), 1, backend.clock) == (50, 50, 55, 55)


def test_a_cost_is_never_0_once_it_was_measured() -> None:
    backend = Timed({1: [0]})
    assert warm(backend, (1,), 1, backend.clock) == (1,)


def test_a_model_without_batching_runs_its_own_shape() -> None:
    backend = Timed({1: [5]}, shape=(3, -1), max_batch=0)
    assert warm(backend, (1,), 1, backend.clock) == (5,)
    assert backend.seen == [(3, 1)]


def test_other_contents_are_tried() -> None:
    backend = Timed({1: [5], 2: [9]})
    backend.wants = 1
    assert warm(backend, (1, 2), 1, backend.clock) == (5, 9)


def test_a_model_that_takes_no_sample_is_not_measured() -> None:
    backend = Timed({})
    backend.wants = 1000
    assert warm(backend, (1, 2, 4), 3, backend.clock) == (0, 0, 0)


def test_larger_free_dimensions_are_tried() -> None:
    backend = Timed({}, shape=(-1,))
    backend.wants = 1000
    assert warm(backend, (1,), 1, backend.clock) == (0,)
    assert backend.seen == [(1, 1), (1, 1), (1, 3), (1, 32)]


def test_a_bucket_that_fails_where_a_smaller_one_ran_fails_the_load() -> None:
    backend = Timed({1: [5], 8: [5]})
    backend.error = {8: BackendFailed("out of memory")}
    with pytest.raises(LoadFailed, match="warm-up with 8 rows failed although 1 ran: out of memory"):
        warm(backend, (1, 8), 1, backend.clock)


def test_a_dead_device_is_not_tried_again() -> None:
    backend = Timed({})
    backend.error = {1: BackendDead("gone")}
    with pytest.raises(BackendDead):
        warm(backend, (1, 8), 1, backend.clock)
    assert len(backend.seen) == 1


class Sized(Timed):
    """Padded to 4 or 9; takes so long for rows of a size."""

    def __init__(self, times: Mapping[tuple[int, int], int]) -> None:
        super().__init__({})
        specs = TensorSpec("x", "INT64", (-1,), pad_to=(4, 9)), TensorSpec("other", "INT64", (-1,), pad_to=(6,))
        self.signature = Signature("m", specs, (specs[0],), 64)
        self.sized = dict(times)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        x = inputs["x"]
        self.seen.append((*x.shape, inputs["other"].shape[1]))
        if x.shape not in self.sized:
            raise BackendFailed("out of memory")
        self.now += self.sized[x.shape[0], x.shape[1]]
        return {"x": x}


def test_every_bucket_of_every_size_class_is_measured() -> None:
    backend = Sized({(1, 4): 10, (8, 4): 50, (1, 9): 40, (8, 9): 200})
    # sizes 4, 6 and 9: what has no size of its own as large runs with the next smaller one
    assert warm(backend, (1, 8), 1, backend.clock) == (10, 50, 10, 50, 40, 200)
    assert backend.seen == [(1, 4, 6), (8, 4, 6), (1, 4, 6), (8, 4, 6), (1, 9, 6), (8, 9, 6)]


def test_costs_never_decrease_with_size() -> None:
    backend = Sized({(1, 4): 30, (8, 4): 90, (1, 9): 20, (8, 9): 70})
    assert warm(backend, (1, 8), 1, backend.clock) == (20, 70, 20, 70, 20, 70)


def test_a_size_that_fails_where_a_smaller_one_ran_fails_the_load() -> None:
    backend = Sized({(1, 4): 30, (8, 4): 90, (1, 9): 20})
    with pytest.raises(LoadFailed, match="warm-up with 8 rows of size 9 failed although 1 of size 4 ran: out of memory"):
        warm(backend, (1, 8), 1, backend.clock)


def test_no_size_class_is_measured_where_no_sample_runs() -> None:
    backend = Sized({})
    assert warm(backend, (1, 8), 1, backend.clock) == (0,) * 6
