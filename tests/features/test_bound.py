"""A version's features, batch by batch, from real rows in a store of this process."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from feature_client.cache import RowCache
from feature_client.errors import StoreTimeout
from feature_client.keys import row_keys
from feature_client.memory_store import MemoryStore
from feature_client.reader import Reader
from feature_client.row import pack
from feature_client.samples import Sampled
from feature_client.schema import DEFAULTED, Array, Columns, Feature, Status, hours
from feature_client.view import View, feature_view
from server.core.errors import FeaturesUnavailable, InvalidRequest
from server.core.tensors import Array as Tensor
from server.core.versions import VersionKey
from server.features.bound import KEPT_SETS, Bound, Supply
from server.features.counts import Counts
from tests.features.examples import (
    VIEWS,
    airport_delays,
    bound,
    calendar,
    carrier_delays,
    column,
    features,
    model,
    scaled,
    settings,
    texts,
)

NOW_US = 1_700_000_000_000_000
STAMPS = {view.ref: 1000 + index for index, view in enumerate(VIEWS)}
PRESENT, GIVEN, NOT_FOUND = int(Status.PRESENT), int(Status.GIVEN), int(Status.NOT_FOUND)


class Store(MemoryStore):
    """Says when it is asked, and can be made to be late."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[bytes]] = []
        self.late = False

    def read(self, keys: Sequence[bytes], budget_s: float) -> list[bytes | None]:
        self.asked.append(list(keys))
        if self.late:
            raise StoreTimeout("too late")
        return super().read(keys, budget_s)

    def put(self, view: View, keys: Columns, event_us: int = NOW_US, stamp: int = 0, **values: Any) -> None:
        count = len(next(iter(keys.values())))
        times = np.full(count, event_us)
        made = {feature.name: np.asarray(values[feature.name], feature.dtype) for feature in view.features}
        nulls = np.zeros((count, len(view.features)), np.bool_)
        rows = pack(view, stamp or STAMPS[view.ref], made, nulls, times, times + 5)
        self.write(list(zip(row_keys("p", view, keys), rows, strict=True)), 0)


@dataclass
class Sampler:
    samples: list[Sampled] = field(default_factory=list)

    def offer(self, sampled: Sampled) -> None:
        self.samples.append(sampled)


class Scene:
    def __init__(self, views: Sequence[View] = VIEWS, *, cached: bool = False, **values: Any) -> None:
        self.store = Store()
        self.store.put(
            carrier_delays, {"carrier": texts(b"AA", b"BB")[:, 0]}, carrier_delay=[4.5, 6.0], carrier_flights=[10, 20]
        )
        self.store.put(airport_delays, {"airport": np.array([7, 8])}, airport_delay=[2, 3], recent=[[1, 2], [3, 4]])
        self.sampler = Sampler()
        self.now_us = NOW_US + 60
        chosen = features(*views)
        packed = values.pop("packed", None)
        inputs = values.pop("inputs", None)
        not_read = values.pop("not_read", ())
        given = settings(*([packed] if packed else []), views=chosen, **values)
        if packed is None and inputs is not None:
            given = given.model_copy(update={"inputs": ()})
        self.counts = Counts()
        reader = Reader(self.store, RowCache(2**20) if cached else None)
        sampler: Any = self.sampler
        self.bound = Bound(
            VersionKey("m", 3),
            bound(chosen, given, model(inputs), *not_read),
            Supply(reader, "p", lambda: self.now_us, sampler),
            STAMPS,
            self.counts,
            fail_on_timeout=given.on_timeout == "fail",
        )


def batch(**changed: Tensor | None) -> dict[str, Tensor]:
    """Three real rows and one of padding."""
    inputs: dict[str, Tensor | None] = {
        "carrier": texts(b"AA", b"BB", b"AA", b"AA"),
        "airport": column(np.int64, 8, 7, 8, 8),
        "day": column(np.int32, 1, 5, 6, 1),
        "free": np.ones((4, 2), np.float32),
    }
    return {name: array for name, array in (inputs | changed).items() if array is not None}


def told(statuses: Tensor, name: str, bound: Bound) -> list[int]:
    found: list[int] = statuses[:, bound.names.index(name)].tolist()
    return found


def test_a_batch_is_joined_in_one_round_trip() -> None:
    scene = Scene()
    joined = scene.bound.join(batch(), 3, 1.0)
    assert set(joined.inputs) == set(model().input_names)
    assert joined.inputs["carrier_flights"].tolist() == [[10], [20], [10], [10]]
    assert joined.inputs["recent"].tolist() == [[3, 4], [1, 2], [3, 4], [3, 4]]
    assert joined.inputs["weekend"].tolist() == [False, True, True, False]
    assert joined.inputs["packed"].tolist() == [[3, 3, 0.5], [2, 10, 2], [3, 18, 0.5], [3, 3, 0.5]]
    assert joined.statuses.dtype == np.uint8
    assert joined.statuses.flags.c_contiguous
    assert joined.statuses.tolist() == [[PRESENT] * 7] * 3
    assert joined.refused.tolist() == [False] * 3
    assert [len(keys) for keys in scene.store.asked] == [4]


def test_the_same_rows_alone_are_the_same_bits() -> None:
    scene = Scene()
    whole = scene.bound.join(batch(), 3, 1.0)
    for row in range(3):
        alone = scene.bound.join({name: array[row : row + 1] for name, array in batch().items()}, 1, 1.0)
        for name, array in alone.inputs.items():
            assert array.tobytes() == whole.inputs[name][row : row + 1].tobytes()


def test_what_is_not_there_has_its_default_or_refuses_its_row_alone() -> None:
    scene = Scene()
    joined = scene.bound.join(batch(carrier=texts(b"AA", b"CC", b"AA", b"AA"), airport=column(np.int64, 8, 7, 9, 8)), 3, 1.0)
    assert joined.refused.tolist() == [False, False, True]
    assert joined.inputs["carrier_flights"].tolist() == [[10], [0], [10], [10]]
    assert told(joined.statuses, "carrier_flights", scene.bound) == [PRESENT, NOT_FOUND | DEFAULTED, PRESENT]
    # what is computed of a default is no plain value either
    assert told(joined.statuses, "delay_scaled", scene.bound) == [PRESENT, NOT_FOUND | DEFAULTED, PRESENT]
    assert told(joined.statuses, "recent", scene.bound) == [PRESENT, PRESENT, NOT_FOUND]
    assert joined.inputs["packed"][0].tolist() == [3, 3, 0.5]


@pytest.mark.parametrize(("policy", "refused"), [("default", False), ("fail", True)])
def test_a_store_that_is_late_costs_defaults_or_refusals(policy: str, refused: bool) -> None:
    scene = Scene(on_timeout=policy)
    scene.store.late = True
    joined = scene.bound.join(batch(), 3, 1.0)
    assert joined.refused.tolist() == [refused] * 3
    expected = Status.TIMEOUT if refused else Status.TIMEOUT | DEFAULTED
    assert told(joined.statuses, "carrier_delay", scene.bound) == [expected] * 3
    assert joined.inputs["carrier_flights"].tolist() == [[0]] * 4


def test_rows_of_another_definition_are_never_used() -> None:
    scene = Scene()
    keys = {"carrier": texts(b"BB")[:, 0]}
    scene.store.put(carrier_delays, keys, NOW_US + 1, stamp=1, carrier_delay=[66], carrier_flights=[66])
    joined = scene.bound.join(batch(), 3, 1.0)
    assert joined.refused.tolist() == [False, True, False]
    assert told(joined.statuses, "carrier_flights", scene.bound) == [PRESENT, int(Status.FP_MISMATCH), PRESENT]


def test_what_can_be_no_entity_is_not_found_and_its_neighbours_are() -> None:
    scene = Scene()
    joined = scene.bound.join(batch(carrier=texts(b"x" * 600, b"BB", b"AA", b"x" * 600)), 3, 1.0)
    assert told(joined.statuses, "carrier_flights", scene.bound) == [NOT_FOUND | DEFAULTED, PRESENT, PRESENT]
    assert joined.inputs["carrier_flights"].tolist() == [[0], [20], [10], [0]]
    assert joined.refused.tolist() == [False] * 3
    all_wrong = scene.bound.join(batch(carrier=texts(*[b"x" * 600] * 4)), 3, 1.0)
    assert told(all_wrong.statuses, "carrier_flights", scene.bound) == [NOT_FOUND | DEFAULTED] * 3
    assert told(all_wrong.statuses, "recent", scene.bound) == [PRESENT] * 3


def test_what_is_given_takes_the_place_of_what_would_be_found() -> None:
    scene = Scene()
    given = column(np.float32, 100, 200, 300, 100)
    joined = scene.bound.join(batch(airport_delay=given, carrier_flights=column(np.int64, 1, 2, 3, 1)), 3, 1.0)
    assert joined.inputs["packed"].tolist() == [[100, 100, 0.5], [200, 1000, 2], [300, 1800, 0.5], [100, 100, 0.5]]
    assert joined.inputs["carrier_flights"].tolist() == [[1], [2], [3], [1]]
    assert told(joined.statuses, "airport_delay", scene.bound) == [GIVEN] * 3
    assert told(joined.statuses, "carrier_flights", scene.bound) == [GIVEN] * 3
    assert told(joined.statuses, "delay_by_day", scene.bound) == [PRESENT] * 3
    # no row of the airports' is needed then, but for another feature of theirs
    alone = scene.bound.join(batch(airport_delay=given, recent=np.ones((4, 2), np.float32), airport=None), 3, 1.0)
    assert alone.inputs["packed"].tolist() == joined.inputs["packed"].tolist()
    assert [len(keys) for keys in scene.store.asked] == [4, 2]


def test_a_batch_with_all_of_the_models_inputs_asks_nobody() -> None:
    scene = Scene()
    own = {
        "carrier_flights": column(np.int64, 1, 2),
        "recent": np.zeros((2, 2), np.float32),
        "weekend": np.zeros(2, np.bool_),
        "packed": np.zeros((2, 3), np.float32),
        "day": column(np.int32, 1, -1),
        "free": np.zeros((2, 2), np.float32),
    }
    joined = scene.bound.join(own, 2, 1.0)
    assert all(joined.inputs[name] is array for name, array in own.items())
    assert joined.statuses.tolist() == [[GIVEN] * 7] * 2
    assert (scene.store.asked, scene.sampler.samples) == ([], [])


def test_the_instant_is_now_unless_the_call_states_one() -> None:
    day = hours(24)
    scene = Scene(cached=True, as_of="at_us")
    plain = scene.bound.join(batch(), 3, 1.0)
    scene.bound.join(batch(), 3, 1.0)
    assert len(scene.store.asked) == 1, "what was read a moment ago is remembered"
    stated = column(np.int64, NOW_US + 1, NOW_US + day + 1, NOW_US, NOW_US)
    joined = scene.bound.join(batch(at_us=stated), 3, 1.0)
    assert len(scene.store.asked) == 2, "who states an instant wants what the store says"
    assert told(plain.statuses, "carrier_delay", scene.bound) == [PRESENT] * 3
    assert told(joined.statuses, "carrier_delay", scene.bound) == [PRESENT, Status.STALE | DEFAULTED, PRESENT]
    assert "at_us" not in joined.inputs
    scene.now_us = NOW_US + day + 1
    assert told(scene.bound.join(batch(), 3, 1.0).statuses, "carrier_delay", scene.bound) == [Status.STALE | DEFAULTED] * 3


def test_a_row_that_cannot_be_computed_is_refused_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    healthy = scene.bound.join(batch(), 3, 1.0)
    with caplog.at_level(logging.ERROR):
        joined = scene.bound.join(batch(day=column(np.int32, 1, -5, 6, 1)), 3, 1.0)
        scene.bound.join(batch(day=column(np.int32, 1, -5, 6, 1)), 3, 1.0)
    assert joined.refused.tolist() == [False, True, False]
    for name, array in healthy.inputs.items():
        assert joined.inputs[name][[0, 2, 3]].tolist() == (array if name != "day" else batch()["day"])[[0, 2, 3]].tolist()
    assert [record.getMessage() for record in caplog.records] == ["features cannot be computed"]
    assert caplog.records[0].__dict__["reason"] == "ValueError: a day before the first"
    assert caplog.records[0].__dict__["rows"] == 1
    with pytest.raises(FeaturesUnavailable, match=r"^the features of 'm' cannot be computed: ValueError$"):
        scene.bound.join({name: array[:1] for name, array in batch(day=column(np.int32, -5)).items()}, 1, 1.0)


def test_a_definition_that_gives_something_else_says_what() -> None:
    @feature_view(inputs={"day": "int32"}, features=[Feature("late", "bool", False)])
    def lateness(day: Array) -> dict[str, Array]:
        return {"early": day > 3}

    scene = Scene((lateness,), inputs={"late": ("BOOL", (1,))})
    with pytest.raises(FeaturesUnavailable, match="'lateness@1' must give exactly late; it gave early"):
        scene.bound.join({"day": column(np.int32, 1)}, 1, 1.0)


def test_values_are_counted_by_view_and_status() -> None:
    scene = Scene()
    scene.bound.join(batch(carrier=texts(b"AA", b"CC", b"AA", b"AA"), weekend=np.zeros(4, np.bool_)), 3, 1.0)
    scene.bound.join(batch(), 3, 1.0)
    assert scene.counts.readings() == {
        ("carrier_delays@1", "PRESENT"): 10,
        ("carrier_delays@1", "DEFAULTED(NOT_FOUND)"): 2,
        ("airport_delays@1", "PRESENT"): 12,
        ("calendar@1", "PRESENT"): 9,
        ("calendar@1", "GIVEN"): 3,
        ("scaled@1", "PRESENT"): 5,
        ("scaled@1", "DEFAULTED(NOT_FOUND)"): 1,
    }


def test_samples_have_what_was_served_and_what_it_came_of() -> None:
    scene = Scene(as_of="at_us", keys={"carrier_delays@1": {"carrier": "airline"}})
    airline = batch()["carrier"]
    scene.bound.join(batch(carrier=None, airline=airline, weekend=np.zeros(4, np.bool_)), 3, 1.0)
    (sample,) = scene.sampler.samples
    assert sample.origin == "m:3"
    assert sample.views == ("carrier_delays@1", "airport_delays@1", "calendar@1", "scaled@1")
    assert sample.as_of_us.tolist() == [NOW_US + 60] * 3
    assert {name: each.tolist() for name, each in sample.keys.items()} == {
        "carrier": [b"AA", b"BB", b"AA"],
        "airport": [8, 7, 8],
    }
    assert {name: each.tolist() for name, each in sample.request.items()} == {"day": [1, 5, 6]}
    assert {name: each.tolist() for name, each in sample.available_us.items()} == {
        "carrier_delays@1": [NOW_US + 5] * 3,
        "airport_delays@1": [NOW_US + 5] * 3,
    }
    assert sample.given == ("weekend",)
    assert set(sample.values) == set(sample.statuses) == set(scene.bound.names)
    assert sample.values["delay_by_day"].tolist() == [3, 10, 18]
    assert sample.statuses["weekend"].tolist() == [GIVEN] * 3
    stated = column(np.int64, 1, 2, 3, 1)
    scene.bound.join(batch(carrier=None, airline=airline, at_us=stated), 3, 1.0)
    assert scene.sampler.samples[1].as_of_us.tolist() == [1, 2, 3]


def test_rows_that_could_not_be_computed_are_no_samples() -> None:
    scene = Scene()
    joined = scene.bound.join(batch(day=column(np.int32, 1, -1, 6, 1)), 3, 1.0)
    assert joined.refused.tolist() == [False, True, False]
    (sample,) = scene.sampler.samples
    assert sample.request["day"].tolist() == [1, 6]
    assert sample.keys["airport"].tolist() == [8, 8]
    assert sample.values["delay_by_day"].tolist() == [3, 18]


def test_samples_have_every_feature_whatever_the_call_states_itself() -> None:
    scene = Scene()
    given = column(np.float32, 100, 200, 300, 100)
    own = {"airport_delay": given, "recent": np.ones((4, 2), np.float32), "delay_by_day": given, "weekend": None}
    scene.bound.join(batch(airport=None, **own), 3, 1.0)
    packed = np.arange(12, dtype=np.float32).reshape(4, 3)
    scene.bound.join(batch(packed=packed, airport=None, recent=own["recent"], weekend=np.ones(4, np.bool_)), 3, 1.0)
    first, second = scene.sampler.samples
    for sample in (first, second):
        assert sample.views == ("carrier_delays@1", "airport_delays@1", "calendar@1", "scaled@1")
        assert set(sample.values) == set(sample.statuses) == set(scene.bound.names)
        assert set(sample.available_us) == {"carrier_delays@1"}
        for name in sample.given:
            assert sample.statuses[name].tolist() == [GIVEN] * 3
    assert first.given == ("airport_delay", "recent", "delay_by_day")
    assert first.values["airport_delay"].tolist() == [100, 200, 300]
    assert set(first.request) == {"day"}
    # columns of a packed input that the call brings are its own; what nothing needs has its default
    assert second.given == ("airport_delay", "recent", "weekend", "delay_by_day", "delay_scaled")
    assert second.values["airport_delay"].tolist() == [0, 3, 6]
    assert second.values["delay_scaled"].tolist() == [2, 5, 8]
    assert second.request == {}


def test_what_nothing_needs_is_sampled_as_its_default() -> None:
    inputs = {"delay_scaled": ("FP32", (1,)), "airport_delay": ("FP32", (1,)), "recent": ("FP32", (2,))}
    scene = Scene((carrier_delays, airport_delays, scaled), inputs=inputs, not_read=("carrier_flights",))
    scene.bound.join({"delay_scaled": column(np.float32, 1), "airport": column(np.int64, 8)}, 1, 1.0)
    (sample,) = scene.sampler.samples
    assert sample.given == ("carrier_delay", "carrier_flights", "delay_scaled")
    assert {name: each.tolist() for name, each in sample.values.items()} == {
        "airport_delay": [3],
        "recent": [[3, 4]],
        "carrier_delay": [-1],
        "carrier_flights": [0],
        "delay_scaled": [1],
    }


def test_what_is_missing_is_refused_before_it_joins_a_batch() -> None:
    scene = Scene()
    scene.bound.check(frozenset({"carrier", "airport", "day", "free"}))
    with pytest.raises(InvalidRequest, match="input 'carrier_flights' is missing: give it, or 'carrier' from which the view"):
        scene.bound.check(frozenset({"airport", "day", "free"}))


def test_sets_of_names_that_callers_choose_are_bounded() -> None:
    scene = Scene()
    for number in range(KEPT_SETS + 10):
        scene.bound.check(frozenset({"carrier", "airport", "day", "free", f"more_{number}"}))
    assert len(scene.bound._known) == KEPT_SETS


def test_views_without_rows_need_no_store() -> None:
    scene = Scene((calendar,), inputs={"weekend": ("BOOL", (1,)), "delay_by_day": ("FP32", (1,))})
    inputs: dict[str, Tensor] = {"day": column(np.int32, 2, 6), "airport_delay": column(np.float32, 1.5, 2)}
    joined = scene.bound.join(inputs, 2, 1.0)
    assert joined.inputs["delay_by_day"].tolist() == [[3], [12]]
    assert joined.inputs["weekend"].tolist() == [[False], [True]]
    assert scene.store.asked == []
