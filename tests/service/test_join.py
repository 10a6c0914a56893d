"""Features for whole batches: within their budget, and never at a neighbour's expense."""

import gc
from typing import Any
from weakref import ref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_client.schema import DEFAULTED, Status
from server.core.errors import BackendDead, BackendFailed, FeaturesUnavailable
from server.core.feature_settings import FeatureStoreSettings
from server.dataplane.interface import Batch, Part
from server.dataplane.rows import scatter
from server.dataplane.ticket import NO_DEADLINE_NS
from server.features.interface import STATUSES_OUTPUT, Joined
from server.service.execute import execute
from server.service.join import budget_ns, join
from server.service.refuse import answered
from tests.service.featured import BROKEN, NAMES, REFUSED, STALE, UNAVAILABLE, KeyFeatures, batch_of
from tests.service.test_execute import PickyBackend

SETTINGS = FeatureStoreSettings(budget_us=10_000, budget_of_deadline=0.3)
MS = 1_000_000
BAD = -5
"""A key whose features are there, and which the backend cannot execute."""


def stopped() -> int:
    """A clock that stands still."""
    return 0


def gone_through(batch: Batch, features: KeyFeatures, backend: PickyBackend | None = None) -> list[Any]:
    """What every request of a batch is given at the end, as the data plane deals it out."""
    pieces = join(features, batch, SETTINGS, stopped)
    parts = answered(execute(backend or Doubling(), batch, pieces), pieces, batch.spans, NAMES)
    assert [part.first for part in parts] == [0, *(part.last for part in parts)][:-1]
    assert parts[-1].last == len(batch.spans) - 1
    given: list[Any] = []
    for part in parts:
        if part.outputs is None:
            given += [part.error] * (part.last - part.first)
        else:
            given += scatter(part.outputs, batch.spans, part.first, part.last, batching=True)
    return given


class Doubling(PickyBackend):
    """Doubles; fails where the value is that of `BAD`."""

    def __init__(self) -> None:
        super().__init__(BackendFailed("bad row"))

    def run(self, inputs: Any) -> dict[str, Any]:
        self.runs.append(len(inputs["x"]))
        if (inputs["x"] == BAD).any():
            raise self.error
        return {"y": inputs["x"] * 2}


keys = st.sampled_from([UNAVAILABLE, BROKEN, REFUSED, STALE, BAD]) | st.integers(1, 9)
requests = st.lists(st.lists(keys | st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=16)


@given(keys=requests, padding=st.booleans())
def test_everybody_gets_what_they_would_get_alone(keys: list[list[int]], padding: bool) -> None:
    features = KeyFeatures()
    given = gone_through(batch_of(keys, padding=padding), features)
    for own, got in zip(keys, given, strict=True):
        if UNAVAILABLE in own:
            # one that has both is told either
            assert isinstance(got, FeaturesUnavailable | BackendFailed)
        elif BROKEN in own:
            assert str(got) == "finding the features of 'm' failed: KeyError"
        elif REFUSED in own:
            where = f" in {own.count(REFUSED)} of {len(own)} rows" if len(own) > 1 else ""
            assert isinstance(got, FeaturesUnavailable)
            assert str(got) == f"features are unavailable{where}: 'rate' is TIMEOUT"
        elif BAD in own:
            assert str(got) == "bad row"
        else:
            assert got["y"][:, 0].tolist() == [2.0 * key for key in own]
            stale = Status.STALE | DEFAULTED
            assert got[STATUSES_OUTPUT].tolist() == [[0, stale if key == STALE else 0] for key in own]
    assert len(features.budgets_s) <= max(1, 2 * len(keys))
    if padding:
        assert {padded for _, padded in features.rows} <= {1, 2, 4, 8, 16, 32, 64}


def test_features_are_not_looked_up_again_for_the_halves_of_a_failed_batch() -> None:
    features, backend = KeyFeatures(), Doubling()
    given = gone_through(batch_of([[1], [STALE], [BAD], [4, 5]]), features, backend)
    assert len(features.budgets_s) == 1
    assert backend.runs[0] == 8
    assert len(backend.runs) > 2
    assert given[3]["y"].tolist() == [[8.0], [10.0]]
    assert given[1][STATUSES_OUTPUT].tolist() == [[0, Status.STALE | DEFAULTED]]


def test_nothing_is_executed_for_nobody() -> None:
    backend = Doubling()
    refused = gone_through(batch_of([[REFUSED], [1, REFUSED]]), KeyFeatures(), backend)
    assert [str(error) for error in refused] == [
        "features are unavailable: 'rate' is TIMEOUT",
        "features are unavailable in 1 of 2 rows: 'rate' is TIMEOUT",
    ]
    assert backend.runs == []


def test_a_dead_backend_is_told_to_those_who_would_have_been_answered() -> None:
    batch = batch_of([[1], [REFUSED], [UNAVAILABLE], [4]])
    pieces = join(KeyFeatures(), batch, SETTINGS, stopped)
    dead = BackendDead("device lost")
    parts = answered([Part(0, 4, None, dead)], pieces, batch.spans, NAMES)
    errors = [part.error for part in parts for _ in range(part.first, part.last)]
    assert errors[0] is errors[3] is dead
    assert [str(error) for error in errors[1:3]] == [
        "features are unavailable: 'rate' is TIMEOUT",
        "'rate' cannot be computed",
    ]


def test_a_refusal_names_the_worst_features_first_and_not_all_of_them() -> None:
    batch = batch_of([[1]])
    names = tuple(f"f{index}" for index in range(12))
    statuses = np.full((1, 12), Status.STALE, np.uint8)
    statuses[0, 5], statuses[0, 6], statuses[0, 7] = Status.FP_MISMATCH, Status.TIMEOUT | DEFAULTED, Status.GIVEN
    features: Any = KeyFeatures()
    features.names = names
    features.join = lambda inputs, rows, budget_s: Joined({}, statuses, np.ones(1, np.bool_))
    pieces = join(features, batch, SETTINGS, stopped)
    (part,) = answered([Part(0, 1, None)], pieces, batch.spans, names)
    stale = ", ".join(f"'f{index}' is STALE" for index in (0, 1, 2, 3, 4, 8, 9))
    assert str(part.error) == f"features are unavailable: 'f5' is FP_MISMATCH, {stale} and 2 more"
    statuses[:] = Status.NULL
    (part,) = answered([Part(0, 1, None)], pieces, batch.spans, names)
    assert str(part.error) == "features are unavailable: they cannot be computed"


def test_what_breaks_the_contract_fails_its_request(caplog: pytest.LogCaptureFixture) -> None:
    features: Any = KeyFeatures()
    features.join = lambda inputs, rows, budget_s: Joined({}, np.zeros((rows, 1), np.uint8), np.zeros(rows, np.bool_))
    (piece,) = join(features, batch_of([[1]]), SETTINGS, stopped)
    assert str(piece.error) == "finding the features of 'm' failed: ValueError"
    assert {record.getMessage() for record in caplog.records} == {"features could not be joined"}


def test_a_batch_without_a_batch_dimension() -> None:
    batch = batch_of([[STALE]], padding=False)
    pieces = join(KeyFeatures(), batch, SETTINGS, stopped)
    (part,) = answered([Part(0, 1, {"y": np.array(1)})], pieces, batch.spans, NAMES)
    assert part.outputs is not None
    assert part.outputs["y"] == 1
    assert part.outputs[STATUSES_OUTPUT].tolist() == [[0, Status.STALE | DEFAULTED]]


@pytest.mark.parametrize(
    ("remaining_ms", "expected_us"),
    [
        ([None], 10_000),
        ([20], 6_000),
        ([100, 1], 10_000),
        ([1, 20, 2], 6_000),
        ([1, None], 10_000),
        ([-5], 0),
        ([-5, 1], 300),
    ],
)
def test_the_most_patient_request_decides(remaining_ms: list[int | None], expected_us: int) -> None:
    now_ns = 123 * MS
    deadlines = [NO_DEADLINE_NS if each is None else now_ns + each * MS for each in remaining_ms]
    assert budget_ns(np.array(deadlines, np.int64), now_ns, SETTINGS) == expected_us * 1000


def test_all_joins_of_a_batch_have_one_budget() -> None:
    now_ns = [0]
    features = KeyFeatures(lambda: now_ns.__setitem__(0, now_ns[0] + 4 * MS))
    join(features, batch_of([[UNAVAILABLE], [1]]), SETTINGS, lambda: now_ns[0])
    assert features.budgets_s == [0.01, 0.006, 0.002]
    join(features, batch_of([[UNAVAILABLE], [1]], deadline_ns=[2, now_ns[0] + 20 * MS]), SETTINGS, lambda: now_ns[0])
    assert features.budgets_s[3:] == [0.006, 0.002, 0.0]


def test_failed_features_keep_nothing_of_their_batch() -> None:
    gc.collect()
    gc.disable()  # what stays until a collection would stay for long: a server rarely has one
    try:
        batch = batch_of([[UNAVAILABLE]])
        kept = ref(batch.inputs["id"])
        pieces = join(KeyFeatures(), batch, SETTINGS, stopped)
        del batch
        assert pieces[0].error is not None
        assert kept() is None
    finally:
        gc.enable()
