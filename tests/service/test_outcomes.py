"""What a caller may report of which model, and what it is told where it may not."""

import math
from typing import Any

import pytest

from server.core.errors import InvalidRequest, NotFound, NotReady, Overloaded, PodiumError, Unsupported
from server.core.monitoring_settings import QualitySettings
from server.core.settings import ModelSettings
from server.core.signature import Signature
from server.core.tensors import TensorSpec
from server.core.versions import State, VersionKey
from server.lifecycle.published import EMPTY, Published, publish
from server.lifecycle.replica import Replica
from server.monitoring.outcome import Outcome, Receipt, ReceiptStatus
from server.service.outcomes import MOST_ROW, Outcomes, Reported
from server.telemetry.recorder import VersionRecorder

LABELS = {"score": ["cat", "dog", "", "cat"]}


def replica(version: int, quality: dict[str, Any] | None, shape: tuple[int, ...] = (3,), **settings: Any) -> Replica:
    key = VersionKey("m", version)
    backend: Any = None
    monitoring = {"quality": quality, **settings}
    return Replica(
        queue_id=version,
        key=key,
        backend=backend,
        signature=Signature("m", (TensorSpec("x", "FP32", (2,)),), (TensorSpec("score", "FP32", shape),), 4),
        settings=ModelSettings.model_validate({"monitoring": monitoring}),
        buckets=(1,),
        costs_ns=(0,),
        device="cpu",
        recorder=VersionRecorder(key),
        stamp="",
        labels=LABELS if version < 9 else {},
    )


class Taking:
    """Remembers what it is given; knows one version that has left."""

    def __init__(self) -> None:
        self.taken: list[Outcome] = []

    def report(self, outcome: Outcome) -> Receipt:
        self.taken.append(outcome)
        return Receipt(ReceiptStatus.DUPLICATE, 1)

    def quality_of(self, model: str, version: int = 0) -> QualitySettings | None:
        return QualitySettings(kind="multiclass") if (model, version) in (("gone", 7), ("gone", 0), ("m", 5)) else None


def published(*replicas: Replica) -> Published:
    ready = {each.key: each for each in replicas}
    states = {**dict.fromkeys(ready, State.READY), VersionKey("m", 5): State.UNAVAILABLE, VersionKey("m", 6): State.LOADING}
    return publish(ready, states, {"m": {"champion": replicas[0].key.version}}, EMPTY)


def reported(label: Any = 1.0, **fields: Any) -> Reported:
    return Reported(**{"model": "m", "version": "", "prediction_id": "p", "row": 0, "label": label, **fields})


def taken(quality: dict[str, Any] | None, said: Reported, **options: Any) -> list[Outcome]:
    taking = Taking()
    outcomes = Outcomes(lambda: published(replica(2, quality, **options)), taking)
    assert not outcomes.may_wait
    assert outcomes.report(said) == Receipt(ReceiptStatus.DUPLICATE, 1)
    return taking.taken


def refusal(quality: dict[str, Any] | None, said: Reported, **options: Any) -> PodiumError:
    with pytest.raises(PodiumError) as told:
        taken(quality, said, **options)
    return told.value


@pytest.mark.parametrize(
    ("kind", "said", "label"),
    [
        ("binary", True, 1.0),
        ("binary", False, 0.0),
        ("binary", 1.0, 1.0),
        ("binary", 0.0, 0.0),
        ("multiclass", 2.0, 2.0),
        ("multiclass", "dog", 1.0),
        ("multiclass", "cat", 0.0),
        ("regression", -1e300, -1e300),
    ],
)
def test_labels_become_numbers(kind: str, said: Any, label: float) -> None:
    assert taken({"kind": kind}, reported(said, row=MOST_ROW, observed_us=4)) == [Outcome("m", 0, "p", MOST_ROW, label, 4)]


@pytest.mark.parametrize(("version", "number"), [("", 0), ("2", 2), ("+2", 2), ("champion", 2)])
def test_versions_are_named_as_in_any_call(version: str, number: int) -> None:
    assert taken({}, reported(version=version)) == [Outcome("m", number, "p", 0, 1.0)]


@pytest.mark.parametrize(
    ("kind", "said", "told"),
    [
        ("binary", None, "needs one of value, positive and name"),
        ("binary", 0.5, "is 0 or 1, not 0.5"),
        ("binary", math.nan, "finite"),
        ("binary", "dog", "'name' is of a model of several classes"),
        ("multiclass", True, "'positive' is of a binary model"),
        ("multiclass", 1.5, "number of a class"),
        ("multiclass", -1.0, "number of a class"),
        ("multiclass", 3.0, "from 0 on below 3, not 3.0"),
        ("multiclass", math.inf, "finite"),
        ("multiclass", "cow", "no class named 'cow'"),
        ("multiclass", "", "no class named ''"),
        ("regression", False, "'positive' is of a binary model"),
        ("regression", -math.inf, "finite"),
        ("regression", "dog", "'name' is of a model of several classes"),
    ],
)
def test_labels_that_cannot_be_true_are_refused(kind: str, said: Any, told: str) -> None:
    error = refusal({"kind": kind}, reported(said))
    assert isinstance(error, InvalidRequest)
    assert told in str(error)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prediction_id": ""}, "the id of its prediction's request"),
        ({"row": MOST_ROW + 1}, "a row is a number from 0 to 2147483647, not 2147483648"),
        ({"row": -1}, "a row is a number"),
        ({"observed_us": -1}, "not negative"),
        ({"version": "2x"}, "failed to get model version from specified version string '2x'"),
    ],
)
def test_what_names_no_prediction_is_refused(fields: dict[str, Any], told: str) -> None:
    error = refusal({}, reported(**fields))
    assert isinstance(error, InvalidRequest)
    assert told in str(error)


def test_models_and_versions_that_are_unknown_are_told_as_in_any_call() -> None:
    for fields, kind, told in (
        ({"model": "foo"}, NotFound, "Request for unknown model: 'foo' is not found"),
        ({"version": "4"}, NotFound, "Request for unknown model: 'm' version 4 is not found"),
        ({"version": "6"}, NotReady, "Request for unknown model: 'm' version 6 is not at ready state"),
    ):
        error = refusal({}, reported(**fields))
        assert (type(error), str(error)) == (kind, told)


def test_a_model_without_quality_takes_none() -> None:
    for quality, options in ((None, {}), ({}, {"enabled": False})):
        error = refusal(quality, reported(), **options)
        assert (type(error), "no [monitoring.quality]" in str(error)) == (Unsupported, True)


def test_what_has_left_is_known_by_its_predictions() -> None:
    taking = Taking()
    outcomes = Outcomes(lambda: published(replica(2, {})), taking)
    for said, version in (
        (reported(8.0, model="gone"), 0),
        (reported(2.0, model="gone", version="7"), 7),
        (reported(2.0, version="5"), 5),
    ):
        outcomes.report(said)
        assert taking.taken.pop() == Outcome(said.model, version, "p", 0, said.label)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="state the number"):
        outcomes.report(reported("dog", model="gone"))
    with pytest.raises(InvalidRequest, match=r"an integer from 0 on, not 0\.5"):
        outcomes.report(reported(0.5, model="gone"))


@pytest.mark.parametrize("shape", [(-1,), ()])
def test_classes_that_are_not_stated_do_not_bound_a_label(shape: tuple[int, ...]) -> None:
    assert taken({"kind": "multiclass"}, reported(1000.0), shape=shape)[0].label == 1000.0
    assert taken({"kind": "multiclass", "output": "other"}, reported(1000.0))[0].label == 1000.0


def test_names_are_those_of_the_version_s_own_output() -> None:
    without = "output 'score' of model 'm' has no names of classes"
    taking = Taking()
    outcomes = Outcomes(
        lambda: published(*(replica(version, {"kind": "multiclass"}) for version in (2, *range(9, 50)))), taking
    )
    for version in range(9, 50):
        with pytest.raises(InvalidRequest, match=without):
            outcomes.report(reported("dog", version=str(version)))
    for _ in range(2):
        outcomes.report(reported("dog", version="2"))
    assert [each.label for each in taking.taken] == [1.0, 1.0]
    kept: Any = outcomes._names
    assert len(kept) == 32


def test_where_another_process_joins_them_they_are_forwarded() -> None:
    forwarded: list[Outcome] = []
    outcomes = Outcomes(lambda: published(replica(2, {})), None, forwarded.append)
    assert outcomes.may_wait
    assert outcomes.report(reported(True)) == Receipt(ReceiptStatus.ACCEPTED, 0)
    assert forwarded == [Outcome("m", 0, "p", 0, 1.0)]
    with pytest.raises(NotFound):
        outcomes.report(reported(model="gone"))

    def full(outcome: Outcome) -> None:
        raise Overloaded("the stream cannot be reached")

    with pytest.raises(Overloaded):
        Outcomes(lambda: published(replica(2, {})), None, full).report(reported())


def test_a_server_without_monitoring_takes_none() -> None:
    with pytest.raises(Unsupported, match=r"monitoring\.sink is 'none'"):
        Outcomes(lambda: published(replica(2, {})), None).report(reported())
