"""What a call must bring, and what is then found and computed."""

import pytest

from server.core.errors import InvalidRequest
from server.features.needed import needed
from tests.features.examples import bound, features, model, settings

BINDING = bound(features(), settings(), model())
OWN = {"day", "free"}
KEYS = {"carrier", "airport"}


def views_of(*names: str) -> list[str]:
    return [view.ref for view in needed(BINDING, {*OWN, *names}).views.views]


def test_keys_are_enough() -> None:
    assert views_of(*KEYS) == ["carrier_delays@1", "airport_delays@1", "calendar@1", "scaled@1"]
    found = needed(BINDING, {*OWN, *KEYS})
    assert (found.given, set(found.views.keys), set(found.views.request)) == ((), KEYS, {"day"})


def test_with_all_of_the_models_inputs_nothing_is_needed() -> None:
    assert views_of("carrier_flights", "recent", "weekend", "packed") == []
    # and more than that does no harm
    assert views_of("carrier_flights", "recent", "weekend", "packed", *KEYS) == []


def test_only_what_is_not_given_is_looked_up() -> None:
    assert views_of("carrier", "recent", "airport_delay") == ["carrier_delays@1", "calendar@1", "scaled@1"]
    assert views_of("carrier_flights", "airport", "delay_scaled") == ["airport_delays@1", "calendar@1"]
    # what is given of a view that is needed all the same takes the place of what is found
    assert needed(BINDING, {*OWN, *KEYS, "recent", "weekend"}).given == ("recent", "weekend")


def test_a_feature_given_in_place_of_its_view_is_an_input_of_others() -> None:
    found = needed(BINDING, {*OWN, "carrier", "recent", "airport_delay"})
    assert found.views.request == {"day": "int32", "airport_delay": "float32"}
    assert found.given == ()


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (
            {"airport"},
            "input 'carrier_flights' is missing: give it, or 'carrier' from which the view 'carrier_delays@1' finds it",
        ),
        ({"carrier"}, "input 'recent' is missing: give it, or 'airport' from which the view 'airport_delays@1' finds it"),
        (
            {"carrier", "recent"},
            "input 'weekend' is missing: give it, or 'airport' from which the view 'airport_delays@1' finds 'airport_delay',"
            " or 'airport_delay' itself",
        ),
        (
            {"carrier", "recent", "weekend"},
            "input 'packed' is missing: give it, or 'airport' from which the view 'airport_delays@1' finds 'airport_delay',"
            " or 'airport_delay' itself",
        ),
        (
            {*KEYS, "packed", "delay_scaled"},
            "inputs 'packed' and 'delay_scaled' are both given, but 'delay_scaled' is a column",
        ),
    ],
)
def test_what_is_missing_is_named_with_what_could_be_given(names: set[str], text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        needed(BINDING, {*OWN, *names})
    assert text in str(caught.value)


def test_a_value_of_the_request_that_is_missing_is_named() -> None:
    without = bound(features(), settings(), model({name: spec for name, spec in BINDING_INPUTS.items() if name != "day"}))
    with pytest.raises(InvalidRequest, match="'day' from which the view 'calendar@1' computes it"):
        needed(without, {"free", *KEYS})


BINDING_INPUTS = {spec.name: (spec.datatype, spec.shape) for spec in BINDING.model.inputs}
