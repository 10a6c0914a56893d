"""What a model's inputs are made of: what fits, and every refusal."""

from dataclasses import replace
from typing import Any

import pytest

from feature_client.aggregation import count
from feature_client.schema import Array, Entity, Feature, hours
from feature_client.view import View, feature_view
from server.core.errors import LoadFailed
from server.core.tensors import TensorSpec
from tests.features.examples import (
    CARRIER,
    FLIGHTS,
    INPUTS,
    PACKED,
    Spec,
    airport_delays,
    bound,
    calendar,
    carrier_delays,
    features,
    model,
    scaled,
    settings,
)


def of_log(*made: Feature, entity: Entity, name: str) -> View:
    """A stored view with these features, which is never computed."""

    def function(flights: Array) -> dict[str, Array]:
        raise AssertionError

    return feature_view(entity=entity, source=FLIGHTS, inputs={"flights": count(hours(1))}, features=made, name=name)(function)


def of_request(*made: Feature, name: str = "extra", **inputs: str) -> View:
    """A request view with these features, which is never computed."""

    def function(**columns: Array) -> dict[str, Array]:
        raise AssertionError

    return feature_view(inputs=inputs or {"seats": "float64"}, features=made, name=name)(function)


def test_callers_see_keys_and_values_beside_inputs_that_are_optional_where_features_fill_them() -> None:
    made = bound(features(), settings(as_of="at_us", keys={"carrier_delays@1": {"carrier": "airline"}}), model())
    assert made.signature.inputs == (
        TensorSpec("carrier_flights", "INT64", (1,), optional=True),
        TensorSpec("recent", "FP32", (2,), optional=True),
        TensorSpec("weekend", "BOOL", (), optional=True),
        TensorSpec("packed", "FP32", (3,), optional=True),
        TensorSpec("day", "INT32", (1,)),
        TensorSpec("free", "FP32", (2,)),
        TensorSpec("airline", "BYTES", (1,), optional=True),
        TensorSpec("airport", "INT64", (1,), optional=True),
        TensorSpec("at_us", "INT64", (1,), optional=True),
        TensorSpec("carrier_delay", "FP32", (1,), optional=True),
        TensorSpec("airport_delay", "FP32", (1,), optional=True),
        TensorSpec("delay_by_day", "FP32", (1,), optional=True),
        TensorSpec("delay_scaled", "FP32", (1,), optional=True),
    )
    assert (made.signature.outputs, made.signature.max_batch) == (model().outputs, 8)
    assert made.model == model()
    assert made.taken["packed"] == tuple(PACKED["columns"])
    assert made.packed == {"packed"}
    assert made.keys == {"carrier": "airline", "airport": "airport"}
    assert made.names == (
        "carrier_delay",
        "carrier_flights",
        "airport_delay",
        "recent",
        "weekend",
        "delay_by_day",
        "delay_scaled",
    )


def test_values_of_the_request_become_inputs_where_the_model_has_none() -> None:
    view = of_request(Feature("late", "bool", False), code="bytes", hour="uint8")
    made = bound(
        features(view), settings(views=features(view)).model_copy(update={"inputs": ()}), model({"late": ("BOOL", (1,))})
    )
    assert made.signature.inputs[1:] == (
        TensorSpec("code", "BYTES", (1,), optional=True),
        TensorSpec("hour", "UINT8", (1,), optional=True),
    )


@pytest.mark.parametrize("datatype", ["INT8", "UINT32", "INT64"])
def test_a_join_key_may_be_an_input_of_the_model_of_any_width(datatype: str) -> None:
    made = bound(features(), settings(), model({**INPUTS, "airport": (datatype, ())}))
    assert TensorSpec("airport", datatype, ()) in made.signature.inputs


def test_one_input_may_bring_a_key_a_value_and_the_instant() -> None:
    view = of_request(Feature("late", "bool", False), at_us="int64")
    key = of_log(Feature("busy", "float32", 0.0), entity=Entity("slot", {"event_us": "int64"}), name="slots")
    views = features(view, key)
    given = settings(views=views, as_of="at_us", keys={"slots@1": {"event_us": "at_us"}}).model_copy(update={"inputs": ()})
    made = bound(views, given, model({"late": ("BOOL", (1,)), "busy": ("FP32", (1,))}))
    assert [spec.name for spec in made.signature.inputs] == ["late", "busy", "at_us"]


def refused(views: tuple[View, ...], inputs: dict[str, Spec], packed: tuple[dict[str, Any], ...], **values: Any) -> str:
    chosen = features(*views)
    given = settings(views=chosen, **values)
    with pytest.raises(LoadFailed) as caught:
        bound(chosen, given.model_copy(update={"inputs": settings(*packed).inputs if packed else ()}), model(inputs))
    return str(caught.value)


ALL = (carrier_delays, airport_delays, calendar, scaled)
FULL = (PACKED,)


def test_a_model_that_does_not_batch_cannot_have_features() -> None:
    with pytest.raises(LoadFailed, match="without a batch dimension cannot have features"):
        bound(features(), settings(), model(max_batch=0))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"carrier_flights": ("INT32", (1,))},
            "'carrier_flights' of 'carrier_delays@1' is int64 (INT64), but the model's input",
        ),
        ({"recent": ("FP32", (3,))}, "the feature 'recent' fills [2] of each row, but the model's input 'recent' is [3]"),
        ({"recent": ("FP32", (1, 2))}, "the feature 'recent' fills [2] of each row, but the model's input 'recent' is [1, 2]"),
        ({"weekend": ("BOOL", (2,))}, "the feature 'weekend' fills [1] of each row, but the model's input 'weekend' is [2]"),
        ({"packed": ("FP32", (4,))}, "3 packed columns fill [3] of each row, but the model's input 'packed' is [4]"),
        ({"packed": ("FP32", ())}, "3 packed columns fill [3] of each row, but the model's input 'packed' is []"),
        ({"packed": ("FP64", (3,))}, "'airport_delay' of 'airport_delays@1' is float32 (FP32), but the model's input 'packed'"),
        ({"delay_scaled": ("FP32", (1,))}, "'delay_scaled' is packed into 'packed', but the model also has an input"),
        ({"day": ("INT64", (1,))}, "the input 'day' is INT64 [1] and cannot bring the request's 'day', which is INT32 [1]"),
        ({"day": ("INT32", (-1,))}, "the input 'day' is INT32 [-1] and cannot bring the request's 'day', which is INT32 [1]"),
        (
            {"airport": ("FP32", (1,))},
            "the input 'airport' is FP32 [1] and cannot bring the join key 'airport', which is INT64",
        ),
        ({"podium_x": ("FP32", (1,))}, "'podium_x' cannot be an input or output beside features"),
    ],
)
def test_inputs_that_do_not_fit_are_named(changed: dict[str, Spec], text: str) -> None:
    assert text in refused(ALL, {**INPUTS, **changed}, FULL)


def test_outputs_cannot_have_the_names_of_the_server() -> None:
    with pytest.raises(LoadFailed, match="'podium_feature_statuses' cannot be an input or output"):
        bound(features(), settings(), model(outputs=("podium_feature_statuses",)))


@pytest.mark.parametrize(
    ("packed", "text"),
    [
        (
            {"name": "pack", "columns": ["delay_scaled"]},
            "packs 'pack', which is no input of the model; its inputs are carrier_fl",
        ),
        ({"name": "weekend", "columns": ["delay_scaled"]}, "packs 'weekend', which is the name of a feature itself"),
        ({"name": "packed", "columns": ["delay"]}, "packs 'delay' into 'packed', but no view has such a feature"),
        ({"name": "free", "columns": ["recent", "airport_delay"]}, "has an input 'recent'"),
        (
            {"name": "packed", "columns": ["airport_delay", "delay_by_day"]},
            "the feature 'delay_scaled' of 'scaled@1' ends nowhere",
        ),
    ],
)
def test_what_cannot_be_packed_is_named(packed: dict[str, Any], text: str) -> None:
    assert text in refused(ALL, INPUTS, (packed,))


def test_what_the_model_was_not_trained_to_take_may_end_anywhere_but_in_it() -> None:
    given = settings({"name": "packed", "columns": ["airport_delay", "delay_by_day"]})
    inputs = {**INPUTS, "packed": ("FP32", (2,))}
    assert bound(features(), given, model(inputs), "delay_scaled").taken["packed"] == ("airport_delay", "delay_by_day")
    with pytest.raises(LoadFailed, match="the model takes the feature 'weekend' of 'calendar@1', but its contract says"):
        bound(features(), settings(), model(), "weekend")


def test_a_feature_with_a_shape_is_no_column() -> None:
    inputs = {name: spec for name, spec in INPUTS.items() if name != "recent"}
    columns = {"name": "packed", "columns": ["recent", "delay_by_day", "delay_scaled"]}
    assert "has the shape [2] and cannot be one column of 'packed'" in refused(ALL, inputs, (columns,))


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            {"carrier_delays@1": {"airline": "x"}},
            "of 'carrier_delays@1' names the join key 'airline'; its join keys are carrier",
        ),
        ({"calendar@1": {"day": "x"}}, "of 'calendar@1' names the join key 'day'; it has no join keys"),
        ({"carrier_delays@1": {"carrier": "weekend"}}, "'weekend' cannot bring the join key 'carrier': it is made of features"),
        (
            {"carrier_delays@1": {"carrier": "delay_by_day"}},
            "'delay_by_day' brings the join key 'carrier', but 'delay_by_day' is",
        ),
        (
            {"carrier_delays@1": {"carrier": "airport"}},
            "the input 'airport' is BYTES [1] and cannot bring the join key 'airport'",
        ),
        ({"carrier_delays@1": {"carrier": "podium_key"}}, "'podium_key' cannot be an input or output beside features"),
    ],
)
def test_keys_that_no_input_can_bring_are_named(keys: dict[str, dict[str, str]], text: str) -> None:
    assert text in refused(ALL, INPUTS, FULL, keys=keys)


def test_one_join_key_has_one_input_as_it_has_one_column_in_training() -> None:
    other = of_log(Feature("fleet", "float32", 0.0), entity=CARRIER, name="fleets")
    keys = {"carrier_delays@1": {"carrier": "airline"}}
    text = refused((*ALL, other), {**INPUTS, "fleet": ("FP32", (1,))}, FULL, keys=keys)
    assert "the join key 'carrier' is brought by the input 'airline' and, in 'fleets@1', by 'carrier'" in text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("carrier", "the input 'carrier' is BYTES [1] and cannot bring 'as_of', which is INT64 [1]"),
        ("carrier_flights", "the input 'carrier_flights' cannot bring 'as_of': it is made of features itself"),
        ("delay_scaled", "the input 'delay_scaled' brings 'as_of', but 'delay_scaled' is also a feature"),
    ],
)
def test_the_instant_needs_an_input_of_its_own(name: str, text: str) -> None:
    assert text in refused(ALL, INPUTS, FULL, as_of=name)


def test_null_texts_cannot_be_inputs_of_a_model() -> None:
    view = of_request(Feature("code", "bytes", b"", null="keep"))
    text = refused((view,), {"code": ("BYTES", (1,))}, ())
    assert "keeps nulls, but the model's input 'code' can hold none" in text


def test_an_input_that_features_fill_cannot_be_padded() -> None:
    specs = [replace(spec, shape=(-1,), pad_to=(4, 8)) if spec.name == "recent" else spec for spec in model().inputs]
    with pytest.raises(LoadFailed, match="the model's input 'recent' has pad_to, but features fill it"):
        bound(features(), settings(), replace(model(), inputs=tuple(specs)))
