"""Constraints on whole batches: whoever breaks one is refused alone, whatever became of the batch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import BackendDead, BackendFailed, FeaturesUnavailable, InvalidValues
from server.core.monitoring_settings import Constraint, ValidationSettings
from server.core.signature import Signature
from server.core.tensors import TensorSpec
from server.core.validation import Constraints, constraints_of
from server.core.versions import VersionKey
from server.dataplane.interface import Batch, Part
from server.dataplane.rows import scatter
from server.features.interface import STATUSES_OUTPUT, Joined
from server.service.execute import execute
from server.service.join import join
from server.service.refuse import answered
from server.service.validate import among, validate
from server.telemetry.recorder import VersionRecorder
from tests.service.featured import BROKEN, CALLERS, NAMES, REFUSED, STALE, UNAVAILABLE, KeyFeatures, batch_of
from tests.service.test_execute import SIGNATURE, PickyBackend
from tests.service.test_execute import batch_of as plain_batch
from tests.service.test_join import BAD, SETTINGS, Doubling, stopped
from tests.service.test_sampling import shown

LARGE = 100
"""A key beyond what is allowed, of which features give an `x` beyond what is allowed."""
HIGH = 50
"""A key that may be asked for, whose `x` may not be."""
MODEL = Signature("m", (TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),), 64)
WITH_FEATURES = replace(CALLERS, inputs=(*CALLERS.inputs, *(TensorSpec(name, "FP32", (1,), True) for name in ("x", *NAMES))))


class Replica:
    """As much of one as validation needs."""

    key = VersionKey("m", 1)

    def __init__(self, constraints: Constraints | None) -> None:
        self.constraints = constraints
        self.recorder = VersionRecorder(self.key)

    @property
    def counted(self) -> Any:
        return self.recorder.snapshot().invalid


def plain(action: Any = "reject", **stated: Any) -> Any:
    settings = ValidationSettings(action=action, inputs=(Constraint(name="x", **stated),))
    return Replica(constraints_of(settings, SIGNATURE, SIGNATURE))


def featured(action: Any = "reject") -> Any:
    """Keys are at most 99, `x` (the feature of the key's value, see `WithX`) at most 40, and `rate` is found."""
    stated = (
        Constraint(name="id", at_most=99),
        Constraint(name="x", at_most=40),
        Constraint(name="rate", complete=True),
    )
    settings = ValidationSettings(action=action, inputs=stated)
    return Replica(constraints_of(settings, WITH_FEATURES, MODEL, (*NAMES, "x"), {}))


class WithX(KeyFeatures):
    """Features that say of `x`, too, whether it was found."""

    names: tuple[str, ...] = (*NAMES, "x")

    def join(self, inputs: Any, rows: int, budget_s: float) -> Joined:
        joined = super().join(inputs, rows, budget_s)
        return replace(joined, statuses=np.hstack([joined.statuses, np.zeros((rows, 1), np.uint8)]))


def gone_through(batch: Batch, replica: Any, features: KeyFeatures | None = None, backend: Any = None) -> list[Any]:
    """What every request is given at the end, as the engine does it."""
    pieces = () if features is None else join(features, batch, SETTINGS, stopped)
    refused = validate(replica, batch, pieces)
    parts = execute(backend or Doubling(), batch, pieces)
    if features is not None:
        parts = answered(parts, pieces, batch.spans, features.names)
    parts = among(parts, refused, batch.spans)
    assert [part.first for part in parts] == [0, *(part.last for part in parts)][:-1]
    assert parts[-1].last == len(batch.spans) - 1
    given: list[Any] = []
    for part in parts:
        if part.outputs is None:
            given += [part.error] * (part.last - part.first)
        else:
            given += scatter(part.outputs, batch.spans, part.first, part.last, batching=True)
    return given


def test_without_constraints_nobody_is_refused() -> None:
    assert validate(Replica(None), plain_batch([1], set()), ()) == []  # type: ignore[arg-type]


def test_what_could_not_be_gathered_is_not_judged() -> None:
    batch = plain_batch([1], set())
    batch.fault = BackendFailed("no memory")
    batch.inputs = {}
    assert validate(plain(finite=True), batch, ()) == []


@given(
    values=st.lists(st.lists(st.sampled_from([0.0, 1.0, 7.0, -1.0, np.nan]), min_size=1, max_size=4), min_size=1, max_size=12),
    padding=st.booleans(),
    action=st.sampled_from(["reject", "count"]),
)
def test_everybody_is_told_what_they_would_be_told_alone(values: list[list[float]], padding: bool, action: str) -> None:
    """Neighbours of -1, which the backend cannot execute either, are answered; who sent it is told of its values."""
    batch = plain_batch([len(own) for own in values], set(), padding=padding)
    batch.inputs["x"][: batch.rows, 0] = [value for own in values for value in own]
    batch.inputs["x"][batch.rows :] = batch.inputs["x"][0]
    replica = plain(action, at_least=0.0, at_most=5.0, complete=True)
    given = gone_through(batch, replica, None, PickyBackend(BackendFailed("bad row")))
    counted = {"at_least": 0, "at_most": 0, "complete": 0}
    for own, got in zip(values, given, strict=True):
        low, high, missing = own.count(-1.0), own.count(7.0), sum(map(np.isnan, own))
        counted["at_least"] += low
        counted["at_most"] += high
        counted["complete"] += missing
        said = [
            f"'x' breaks {what}" + (f" in {count} of {len(own)} rows" if len(own) > 1 else "")
            for what, count in (("at_least = 0", low), ("at_most = 5", high), ("complete", missing))
            if count
        ]
        if action == "reject" and said:
            assert isinstance(got, InvalidValues)
            assert str(got) == f"invalid values for model 'm': {', '.join(said)}"
        elif low:
            assert str(got) == "bad row"
        else:
            assert np.array_equal(got["y"][:, 0], np.array(own, np.float32) + 1, equal_nan=True)
    assert replica.counted == {("x", kind, action): count for kind, count in counted.items() if count}


keys = st.sampled_from([UNAVAILABLE, BROKEN, REFUSED, STALE, BAD, LARGE, HIGH]) | st.integers(1, 9)


@given(
    keys=st.lists(st.lists(keys | st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=12), padding=st.booleans()
)
def test_with_features_everybody_is_told_what_they_would_be_told_alone(keys: list[list[int]], padding: bool) -> None:
    given = gone_through(batch_of(keys, padding=padding), featured(), WithX())
    for own, got in zip(keys, given, strict=True):
        (alone,) = gone_through(batch_of([own], padding=padding), featured(), WithX())
        if isinstance(alone, dict):
            assert got["y"].tolist() == alone["y"].tolist() == [[2.0 * key] for key in own]
            assert got[STATUSES_OUTPUT].tolist() == alone[STATUSES_OUTPUT].tolist()
        else:
            assert (type(got), str(got)) == (type(alone), str(alone))
        if LARGE in own:
            assert isinstance(got, InvalidValues)
        elif {UNAVAILABLE, REFUSED} & set(own):
            assert isinstance(got, FeaturesUnavailable | BackendFailed)
        elif not {BROKEN, BAD} & set(own) and {STALE, HIGH} & set(own):
            assert isinstance(got, InvalidValues)


def test_features_that_break_constraints_are_counted_where_they_settle_anything() -> None:
    """Who is refused for want of features is not invalid, too: of a row without features nothing is known."""
    replica = featured("count")
    given = gone_through(batch_of([[1, HIGH], [REFUSED, HIGH], [STALE], [UNAVAILABLE], [LARGE]]), replica, WithX())
    assert [type(each).__name__ for each in given] == ["dict", "FeaturesUnavailable", "dict", "FeaturesUnavailable", "dict"]
    assert replica.counted == {
        ("id", "at_most", "count"): 1,
        ("x", "at_most", "count"): 2,
        ("rate", "complete", "count"): 1,
    }


def test_a_piece_whose_only_breaches_were_settled_breaks_nothing() -> None:
    replica = featured()
    (got,) = gone_through(batch_of([[REFUSED]]), replica, WithX())
    assert isinstance(got, FeaturesUnavailable)
    assert replica.counted == {}


def test_a_dead_backend_is_told_to_those_who_would_have_been_answered() -> None:
    batch = plain_batch([1, 2, 1], {1})
    dead = BackendDead("device lost")
    parts = among([Part(0, 3, None, dead)], validate(plain(at_least=0), batch, ()), batch.spans)
    errors = [part.error for part in parts for _ in range(part.first, part.last)]
    assert errors[0] is errors[2] is dead
    assert str(errors[1]) == "invalid values for model 'm': 'x' breaks at_least = 0 in 1 of 2 rows"


def test_a_refusal_does_not_name_everything() -> None:
    batch = plain_batch([1], set())
    batch.inputs["x"] = np.full((1, 12), np.nan, np.float32)
    wide = Signature("m", (TensorSpec("x", "FP32", (12,)),), (), 64)
    stated = tuple(Constraint(name="x", column=index, complete=True) for index in range(12))
    replica: Any = Replica(constraints_of(ValidationSettings(inputs=stated), wide, wide))
    (part,) = validate(replica, batch, ())
    named = ", ".join(f"'x[{index}]' breaks complete" for index in range(8))
    assert str(part.error) == f"invalid values for model 'm': {named} and 4 more"


@pytest.mark.parametrize("action", ["reject", "count"])
def test_what_cannot_be_judged_is_not_executed_where_it_had_to_be(
    action: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_memory(*arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Constraints, "brought", no_memory)
    given = gone_through(plain_batch([1, 1], set()), plain(action, finite=True), None, PickyBackend(BackendFailed("no")))
    if action == "reject":
        assert [str(error) for error in given] == ["checking the inputs of 'm' failed: MemoryError"] * 2
    else:
        assert [each["y"].tolist() for each in given] == [[[1.0]], [[2.0]]]
    assert [record.getMessage() for record in caplog.records] == ["a batch could not be validated"]


def test_who_is_refused_is_no_sample_and_shifts_nobody() -> None:
    """With features: rows beside their own answers, wherever the refused stood."""
    batch, features = batch_of([[1], [2, LARGE], [3], [HIGH], [4, 5]]), WithX()
    pieces = join(features, batch, SETTINGS, stopped)
    parts = answered(execute(Doubling(), batch, pieces), pieces, batch.spans, features.names)
    parts = among(parts, validate(featured(), batch, pieces), batch.spans)
    found = {}
    for each in shown(batch, parts, pieces, [True] * 5, CALLERS):
        for place in range(each.rows):
            found[int(each.callers["id"][place, 0])] = float(each.inputs["x"][place, 0]), float(each.outputs["y"][place, 0])
    assert found == {key: (key, 2.0 * key) for key in (1, 3, 4, 5)}
