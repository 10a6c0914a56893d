"""What of a finished batch the sampler is shown: each row with what it was executed with and what it was answered."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from server.core.clock import monotonic_ns
from server.core.errors import BackendFailed
from server.core.feature_settings import FeatureStoreSettings
from server.core.monitoring_settings import ModelMonitoring
from server.core.signature import Signature
from server.core.tensors import Array, TensorSpec
from server.core.versions import VersionKey
from server.dataplane.interface import Batch, Execution, Part, QueueRules
from server.monitoring.lane import Lane
from server.monitoring.sampler import Plan, Sampler
from server.monitoring.samples import Samples
from server.service.execute import execute
from server.service.join import join
from server.service.refuse import answered
from server.service.sampling import sample
from tests.monitoring.sampled import Gathering
from tests.service.featured import BROKEN, CALLERS, NAMES, REFUSED, STALE, KeyFeatures, batch_of

KEY = VersionKey("m", 1)
MODEL = Signature("m", (TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),), 64)


class Doubling:
    """The model: fails for a batch that has a 666."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Any]:
        rows: Any = inputs["x"]
        if (rows == 666).any():
            raise BackendFailed("no")
        return {"y": rows * 2}


def shown(batch: Batch, parts: list[Part], pieces: Any, reached: list[bool], signature: Signature = MODEL) -> list[Samples]:
    sink = Gathering()
    sampler = Sampler(1, [Lane(sink, 10**6, 2**30)])
    sampler.follow({KEY: Plan("champion", 0, 1.0, ModelMonitoring(rate=1.0), NAMES if pieces else ())})
    replica: Any = SimpleNamespace(key=KEY, signature=signature)
    sample(sampler, replica, batch, parts, pieces, np.array(reached))
    sampler.close()
    return sink.got


def run(keys: list[list[int]], reached: list[bool]) -> list[Samples]:
    """Through features, execution and refusals, as the engine does it."""
    batch = batch_of(keys)
    pieces = join(KeyFeatures(), batch, FeatureStoreSettings(), monotonic_ns)
    backend: Any = Doubling()
    parts = answered(execute(backend, batch, pieces), pieces, batch.spans, NAMES)
    return shown(batch, parts, pieces, reached, CALLERS)


def rows(samples: list[Samples]) -> dict[int, tuple[float, float, list[int]]]:
    """By what callers brought: what the model was given, its answer, and the statuses."""
    found = {}
    for each in samples:
        assert set(each.callers) == {"id"}
        for place in range(each.rows):
            key = int(each.callers["id"][place, 0])
            assert key not in found
            given, answer = float(each.inputs["x"][place, 0]), float(each.outputs["y"][place, 0])
            found[key] = given, answer, each.statuses[place].tolist()
    return found


def test_features_and_what_callers_brought_stand_beside_the_answer() -> None:
    got = rows(run([[1], [2, STALE], [4]], [True, True, False]))
    assert got == {1: (1, 2, [0, 0]), 2: (2, 4, [0, 0]), STALE: (STALE, 2 * STALE, [0, 0x83])}


@pytest.mark.parametrize("odd", [BROKEN, REFUSED, 666])
def test_who_was_refused_or_failed_is_no_sample_and_shifts_nobody(odd: int) -> None:
    keys = [[10 + i, 20 + i] for i in range(5)]
    keys[3] = [odd, 99]
    got = rows(run(keys, [True] * 5))
    assert got == {key: (key, 2 * key, [0, 0]) for place, each in enumerate(keys) if place != 3 for key in each}


def plain(sizes: list[int], signature: Signature) -> Batch:
    spans = np.cumsum([0, *sizes]).astype(np.int64)
    total = int(spans[-1])
    shape = (total, 1) if signature.max_batch else (1,)
    rules = QueueRules(1, KEY, signature, "cpu", (64,), (0,), False, 0, True, 0, None)
    nothing = np.zeros(len(sizes), np.int64)
    inputs: dict[str, Array] = {"x": np.arange(np.prod(shape), dtype=np.float32).reshape(shape)}
    return Batch(
        rules, inputs, spans, nothing, nothing, np.arange(len(sizes)).view(np.uint64), "full", [None] * len(sizes), Execution(0)
    )


def test_without_features_the_inputs_are_what_callers_brought() -> None:
    batch = plain([2, 1, 3], MODEL)
    (got,) = shown(batch, [Part(0, 3, {"y": batch.inputs["x"]})], (), [True, False, True])
    assert got.inputs["x"].ravel().tolist() == [0, 1, 3, 4, 5]
    assert got.id_hash.tolist() == [0, 0, 2, 2, 2]
    assert got.callers == {}


def test_a_batch_that_was_halved_is_shown_in_its_parts() -> None:
    batch = plain([2, 1, 3], MODEL)
    halves = [
        Part(0, 1, {"y": np.array([[0.0], [1.0]], np.float32)}),
        Part(1, 2, None, BackendFailed("no")),
        Part(2, 3, {"y": np.array([[3.0], [4.0], [5.0]], np.float32)}),
    ]
    got = shown(batch, halves, (), [True, True, True])
    assert [each.inputs["x"].ravel().tolist() for each in got] == [[0, 1], [3, 4, 5]]
    assert [each.outputs["y"].ravel().tolist() for each in got] == [[0, 1], [3, 4, 5]]


def test_a_model_without_a_batch_dimension_gives_one_row() -> None:
    signature = Signature("m", (TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (2,)),), 0)
    (got,) = shown(plain([1], signature), [Part(0, 1, {"y": np.array([7, 8], np.float32)})], (), [True], signature)
    assert (got.inputs["x"].tolist(), got.outputs["y"].tolist()) == ([[0.0]], [[7.0, 8.0]])


def test_what_cannot_be_shown_costs_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    batch = plain([1, 1], MODEL)
    no_map: Any = [1]
    assert shown(batch, [Part(0, 1, no_map)], (), [True, True]) == []
    assert [record.message for record in caplog.records] == ["a batch could not be sampled"]


def test_what_nobody_samples_is_not_looked_at() -> None:
    sink = Gathering()
    sampler = Sampler(1, [Lane(sink, 10, 10)])
    batch = plain([1], MODEL)
    replica: Any = SimpleNamespace(key=KEY)  # and nothing else
    sample(sampler, replica, batch, [Part(0, 1, {"y": batch.inputs["x"]})], (), np.array([True]))
    sampler.close()
    assert sink.got == []
