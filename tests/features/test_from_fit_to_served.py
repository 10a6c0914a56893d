"""One definition from its fitting to the answer of a version that serves: the bytes of training are the bytes of serving."""

from pathlib import Path

import numpy as np
import pytest

from feature_client.contract import read_contract, write_contract
from feature_client.definitions import load_definitions
from feature_client.errors import DefinitionError
from feature_client.feature_set import FeatureSet
from feature_client.fingerprint import fingerprint
from feature_client.memory_store import MemoryStore
from feature_client.point_in_time import fitted, training_set
from feature_client.schema import Array, Columns, Feature, hours
from feature_client.stream import Push
from feature_client.view import feature_view
from server.core.feature_settings import FeatureStoreSettings
from server.features.installed import Installed
from tests.features.delays import calendar, carrier_delays, scaled
from tests.features.test_installed import FILE, KEY, SIGNATURE, linear, settings

LAST_US = hours(31)


def history(count: int = 300) -> dict[str, Array]:
    rng = np.random.default_rng(7)
    carriers = np.array([b"A", b"B", b"C"], dtype=object)[rng.integers(0, 3, count)]
    delay = np.round(rng.normal(10, 9, count), 1)
    delay[rng.random(count) < 0.2] = np.nan
    return {"event_us": np.sort(rng.integers(0, hours(30), count)), "carrier": carriers, "delay": delay}


def test_what_was_fitted_is_what_is_served(tmp_path: Path) -> None:
    events = {"flights": history()}
    rng = np.random.default_rng(8)
    rows = 200
    keys: dict[str, Array] = {"carrier": np.array([b"A", b"B", b"C", b"never seen"], object)[rng.integers(0, 4, rows)]}
    request: dict[str, Array] = {"day": rng.integers(1, 8, rows)}
    features = fitted([scaled, calendar, carrier_delays], events, rng.integers(0, LAST_US, rows), keys, request)
    learnt = features.states["scaled@1"]["mean"]
    assert np.isfinite(learnt).all()
    trained = training_set(features, events, np.full(rows, LAST_US), keys, request)

    linear(tmp_path)
    write_contract(tmp_path, features)
    store = MemoryStore()
    mark = {carrier_delays.ref: fingerprint(carrier_delays)}
    Push(store, "podium", [carrier_delays], mark, now_us=lambda: LAST_US, lateness_us=LAST_US).push(
        "flights", events["flights"]
    )
    settled = FeatureStoreSettings(definitions=(str(FILE),))
    installed = Installed(load_definitions([FILE]), store, settled, now_us=lambda: LAST_US)
    bound = installed.bind(KEY, tmp_path, settings(), SIGNATURE)
    assert bound is not None
    assert set(bound.names) == set(features.features)
    wanted = np.stack([trained.values[name] for name in ("carrier_delay", "weekend", "delay_scaled")], axis=1)
    for batch in (1, 7, rows):
        for first in range(0, rows, batch):
            part = slice(first, min(first + batch, rows))
            inputs = {"carrier": keys["carrier"][part, None], "day": request["day"][part, None]}
            joined = bound.join(inputs, part.stop - part.start, 5.0)
            assert joined.inputs["x"].tobytes() == wanted[part].tobytes()
            assert joined.inputs["carrier_flights"].tobytes() == trained.values["carrier_flights"][part].tobytes()
            statuses = np.stack([trained.statuses[name][part] for name in bound.names], axis=1)
            assert joined.statuses.tobytes() == statuses.tobytes()
            assert not joined.refused.any()
    installed.close()


def learn_range(delay_scaled: Array) -> dict[str, Array]:
    return {"least": np.array([delay_scaled.min()])}


@feature_view(
    inputs={"delay_scaled": "float32", "day": "int64"},
    features=[Feature("above", "float32", 0.0)],
    fit=lambda delay_scaled, day: learn_range(delay_scaled),
)
def above(delay_scaled: Array, day: Array, state: Columns) -> dict[str, Array]:
    return {"above": delay_scaled - state["least"][0]}


def test_a_model_view_may_learn_from_another() -> None:
    events = {"flights": history()}
    keys: dict[str, Array] = {"carrier": np.array([b"A", b"B"], object)}
    at, request = np.full(2, LAST_US), {"day": np.arange(2)}
    features = fitted([above, scaled, carrier_delays], events, at, keys, request)
    made = training_set(features, events, at, keys, request)
    assert made.values["above"].min() == 0
    assert made.values["above"].max() > 0


def test_a_state_cannot_change_any_more() -> None:
    mine = np.array([4.0])
    features = FeatureSet([scaled], {"scaled@1": {"mean": mine}})
    mine[0] = 5.0
    assert features.states["scaled@1"]["mean"].tolist() == [4.0]
    with pytest.raises(ValueError, match="read-only"):
        features.states["scaled@1"]["mean"][0] = 5.0
    with pytest.raises(TypeError):
        features.states["scaled@1"]["mean"] = mine  # type: ignore[index] # on purpose
    wrong: dict[str, Columns] = {"scaled@1": {"mean": 4.0}}  # type: ignore[dict-item] # on purpose
    with pytest.raises(DefinitionError, match="the state of 'scaled@1' must be NumPy arrays by name"):
        FeatureSet([scaled], wrong)


@feature_view(inputs={"x": "float64"}, features=[Feature("y", "float64", 0.0)], fit=dict)
def counting(x: Array, state: Columns) -> dict[str, Array]:
    state["calls"][...] += 1
    return {"y": x}


def test_a_view_that_learns_while_it_serves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match=r"'counting@1' fails for all golden rows: ValueError: .* read-only"):
        write_contract(tmp_path, FeatureSet([counting], {"counting@1": {"calls": np.zeros(1)}}))
    write_contract(tmp_path, FeatureSet([calendar, scaled], {"scaled@1": {"mean": np.array([4.0])}}))
    contract = read_contract(tmp_path)
    assert contract is not None
    assert not FeatureSet([scaled], contract.states).states["scaled@1"]["mean"].flags.writeable
