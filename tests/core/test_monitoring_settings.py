"""Settings of monitoring and validation: what contradicts itself is refused where it is written."""

from typing import Any

import pytest
from pydantic import ValidationError

from server.core.monitoring_settings import (
    Constraint,
    DeliverySettings,
    ModelMonitoring,
    MonitoringSettings,
    QualitySettings,
    RetrainSettings,
    ValidationSettings,
)


def test_everything_has_a_default() -> None:
    assert MonitoringSettings().sink == "process"
    assert ModelMonitoring().retrain.on == ("drift", "quality")
    assert DeliverySettings() == DeliverySettings(webhook="", command=())
    assert ValidationSettings().inputs == ()


@pytest.mark.parametrize(
    ("stated", "why"),
    [
        ({"webhook": "ftp://example", "hmac_key_file": "k"}, "webhook must be an http:// or https:// URL"),
        ({"webhook": "http://example"}, "who gets an event must be able to trust it"),
        ({"hmac_key_file": "k"}, "stated together"),
        ({"redis": "redis://example"}, "redis and stream are stated together"),
        ({"stream": "events"}, "redis and stream are stated together"),
        ({"webhok": "http://example"}, "Extra inputs"),
    ],
)
def test_a_place_for_events_is_stated_whole(stated: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        DeliverySettings(**stated)


def test_a_place_for_events_that_is_whole() -> None:
    made = DeliverySettings(webhook="https://e", hmac_key_file="k", redis="redis://e", stream="events", command=("a", "b"))
    assert made.command == ("a", "b")


def test_a_shared_stream_needs_its_server() -> None:
    with pytest.raises(ValidationError, match="the URL of the server that all replicas share"):
        MonitoringSettings(sink="redis")
    assert MonitoringSettings(sink="redis", redis="redis://e").stream == "podium:samples"


@pytest.mark.parametrize(
    "stated", [{"objective": "auc"}, {"at_least": 0.7}, {"at_most": 0.7}, {"objective": "auc", "at_least": 0.7, "at_most": 0.9}]
)
def test_an_objective_has_one_bound(stated: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exactly one of at_least and at_most"):
        QualitySettings(**stated)


def test_an_objective_that_has_one() -> None:
    assert QualitySettings().objective == ""
    assert QualitySettings(objective="auc", at_least=0.7).at_most is None
    assert QualitySettings(objective="log_loss", at_most=0.0).at_most == 0.0


def test_reasons_are_a_closed_list() -> None:
    with pytest.raises(ValidationError):
        RetrainSettings(on=("mood",))


@pytest.mark.parametrize(
    ("stated", "why"),
    [
        ({}, "the constraint on 'x' constrains nothing"),
        ({"complete": False, "finite": False}, "constrains nothing"),
        ({"at_least": 2.0, "at_most": 1.0}, "the constraint on 'x' allows nothing: at_least is above at_most"),
        ({"at_least": float("nan")}, "finite number"),
        ({"at_most": float("inf")}, "finite number"),
        ({"column": -1, "complete": True}, "greater than or equal to 0"),
    ],
)
def test_a_constraint_says_something_that_can_be_met(stated: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Constraint(name="x", **stated)


@pytest.mark.parametrize(
    "stated", [{"at_least": 0.0}, {"at_most": 0.0}, {"at_least": 1.0, "at_most": 1.0}, {"one_of": (0,)}, {"finite": True}]
)
def test_each_kind_of_constraint_is_enough(stated: dict[str, Any]) -> None:
    assert Constraint(name="x", **stated).column is None


def test_one_of_keeps_texts_and_integers_apart() -> None:
    assert Constraint(name="x", one_of=("1", 1)).one_of == ("1", 1)
