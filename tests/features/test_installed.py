"""The gate at a load, with definitions, contracts and models as they lie on disk."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from feature_client.audit import audit
from feature_client.contract import write_contract
from feature_client.definitions import definitions_of, load_definitions
from feature_client.feature_set import FeatureSet
from feature_client.fingerprint import fingerprint, stamp_of
from feature_client.keys import row_keys
from feature_client.memory_store import MemoryStore
from feature_client.point_in_time import find, history_of
from feature_client.row import pack
from feature_client.samples import SampleWriter, read_samples
from feature_client.schema import hours
from server.core.errors import LoadFailed, Unsupported
from server.core.feature_settings import FeatureStoreSettings
from server.core.settings import ModelSettings
from server.core.tensors import Array
from server.core.versions import VersionKey
from server.features.bound import Bound
from server.features.installed import KEPT_VERDICTS, Installed, open_installed, wall_us
from server.lifecycle.replica import Loaded
from server.optional import loader_over, open_features
from tests.features.delays import calendar, carrier_delays, scaled
from tests.features.examples import column, model, texts
from tests.lifecycle.doubles import Version
from tests.server.models import graph

KEY = VersionKey("delay", 4)
FILE = Path(__file__).with_name("delays.py")
STATE = {"scaled@1": {"mean": np.array([4.0])}}
TRAINED = FeatureSet([carrier_delays, calendar, scaled], STATE)
FEATURES: dict[str, Any] = {
    "views": [{"view": "carrier_delays@1"}, {"view": "calendar@1"}, {"view": "scaled@1"}],
    "inputs": [{"name": "x", "columns": ["carrier_delay", "weekend", "delay_scaled"]}],
}
SIGNATURE = model({"carrier_flights": ("INT64", (1,)), "x": ("FP32", (3,))})


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def installed(store: MemoryStore) -> Iterator[Installed]:
    made = Installed(load_definitions([FILE]), store, FeatureStoreSettings(definitions=(str(FILE),)), now_us=lambda: 10)
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_contract(tmp_path, TRAINED)
    return tmp_path


def settings(**values: Any) -> ModelSettings:
    return ModelSettings.model_validate({"features": FEATURES | values})


def fill(store: MemoryStore, carrier: bytes, delay: float, flights: int) -> None:
    keys = row_keys("podium", carrier_delays, {"carrier": texts(carrier)[:, 0]})
    values = {"carrier_delay": np.array([delay], np.float32), "carrier_flights": np.array([flights])}
    instant = np.array([5])
    rows = pack(carrier_delays, stamp_of(fingerprint(carrier_delays)), values, np.zeros((1, 2), np.bool_), instant, instant)
    store.write(list(zip(keys, rows, strict=True)), 0)


def call(*days: int) -> dict[str, Array]:
    return {"carrier": texts(*[b"AA"] * len(days)), "day": column(np.int64, *days)}


def test_what_is_installed_as_it_was_trained_on_is_bound(installed: Installed, store: MemoryStore, folder: Path) -> None:
    fill(store, b"AA", 6, 12)
    bound = installed.bind(KEY, folder, settings(), SIGNATURE)
    assert bound is not None
    joined = bound.join(call(3, 6), 2, 1.0)
    assert joined.inputs["x"].tolist() == [[6, 0, 2], [6, 1, 2]]
    assert joined.inputs["carrier_flights"].tolist() == [[12], [12]]
    assert not joined.statuses.any()
    reading = installed.readings()
    assert reading.contracts == {("delay", 4): True}
    assert reading.values == {
        ("carrier_delays@1", "PRESENT"): 4,
        ("calendar@1", "PRESENT"): 2,
        ("scaled@1", "PRESENT"): 2,
    }
    assert (reading.calls, reading.keys, reading.cached_keys, reading.breaker_open) == (1, 2, 0, False)
    assert set(reading.failures.values()) == {0}
    bound.join(call(3), 1, 1.0)
    assert (installed.readings().calls, installed.readings().cached_keys) == (1, 1)


def test_a_version_from_before_features_is_served_as_it_is(
    installed: Installed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert installed.bind(KEY, tmp_path, ModelSettings(), SIGNATURE) is None
        assert caplog.records == []
        assert installed.bind(KEY, tmp_path, settings(), SIGNATURE) is None
    assert [record.getMessage() for record in caplog.records] == ["version without features"]
    assert installed.readings().contracts == {}


def refusal(installed: Installed, folder: Path, given: ModelSettings) -> str:
    with pytest.raises(LoadFailed) as caught:
        installed.bind(KEY, folder, given, SIGNATURE)
    assert installed.readings().contracts == {("delay", 4): False}
    return str(caught.value)


def test_a_model_that_does_not_say_how_it_gets_them_is_refused(installed: Installed, folder: Path) -> None:
    assert refusal(installed, folder, ModelSettings()) == (
        'this version was trained on features: model.toml needs [features] with views = [{ view = "carrier_delays@1" },'
        ' { view = "calendar@1" }, { view = "scaled@1" }]'
    )


def test_other_views_than_it_was_trained_on_are_refused(installed: Installed, folder: Path) -> None:
    views = [{"view": "carrier_delays@1"}, {"view": "calendar@2"}, {"view": "scaled@1"}]
    assert refusal(installed, folder, settings(views=views)) == (
        "model.toml names the views calendar@2, carrier_delays@1, scaled@1, but this version was trained on calendar@1,"
        " carrier_delays@1, scaled@1"
    )


def test_views_of_other_versions_of_the_model_are_not_its_own(installed: Installed, folder: Path) -> None:
    views = [*FEATURES["views"], {"view": "carrier_delays@2", "keys": {"carrier": "airline"}}, {"view": "other@1"}]
    bound = installed.bind(KEY, folder, settings(views=views), SIGNATURE)
    assert bound is not None
    assert set(bound.names) == set(TRAINED.features)
    assert "airline" not in bound.signature.input_names


def test_features_that_do_not_fit_the_model_are_refused(installed: Installed, folder: Path) -> None:
    columns = {"name": "x", "columns": ["carrier_delay", "weekend"]}
    assert "the feature 'delay_scaled' of 'scaled@1' ends nowhere" in refusal(installed, folder, settings(inputs=[columns]))


def rewritten(tmp_path: Path, old: str, new: str) -> Path:
    """The definitions, edited."""
    source = FILE.read_text()
    assert old in source
    path = tmp_path / "installed" / "delays.py"
    path.parent.mkdir()
    path.write_text(source.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ("day >= 5", "day >= 6", "calendar@1: "),
        ('"carrier_delay", "float32", -1.0', '"carrier_delay", "float32", -2.0', "carrier_delays@1: "),
        ('mean("delay", hours(6))', 'mean("delay", hours(5))', "carrier_delays@1: "),
        ("def calendar(", "def other_calendar(", "calendar@1: not installed; there is: carrier_delays@1"),
    ],
)
def test_other_definitions_are_refused_with_every_difference(
    store: MemoryStore, folder: Path, old: str, new: str, difference: str
) -> None:
    path = rewritten(folder, old, new)
    other = Installed(load_definitions([path]), store, FeatureStoreSettings())
    text = refusal(other, folder, settings())
    assert text.startswith("the definitions installed here are not what this version was made with:\n  ")
    assert f"\n  {difference}" in text


def test_the_same_definition_written_otherwise_is_the_same(store: MemoryStore, folder: Path) -> None:
    path = rewritten(folder, '    return {"weekend": (day', '    # from Friday evening on\n    return {"weekend": (day')
    same = Installed(load_definitions([path]), store, FeatureStoreSettings())
    assert same.bind(KEY, folder, settings(), SIGNATURE) is not None


def test_a_contract_that_cannot_be_read_is_refused(installed: Installed, folder: Path) -> None:
    (folder / "features.npz").unlink()
    assert "features.npz is missing" in refusal(installed, folder, settings())
    (folder / "features.json").write_text("{")
    assert "features.json: no description of features" in refusal(installed, folder, settings())


def test_verdicts_are_of_the_last_load_and_bounded(installed: Installed, folder: Path) -> None:
    assert installed.bind(KEY, folder, settings(), SIGNATURE) is not None
    refusal(installed, folder, ModelSettings())
    assert installed.bind(KEY, folder, settings(), SIGNATURE) is not None
    assert installed.readings().contracts == {("delay", 4): True}
    for version in range(KEPT_VERDICTS):
        with pytest.raises(LoadFailed):
            installed.bind(VersionKey("other", version + 1), folder, ModelSettings(), SIGNATURE)
    assert len(installed.readings().contracts) == KEPT_VERDICTS
    assert ("delay", 4) not in installed.readings().contracts


def test_closing_twice_is_closing() -> None:
    installed = Installed(
        definitions_of([carrier_delays, calendar, scaled]), MemoryStore(), FeatureStoreSettings(cache_bytes=0)
    )
    installed.close()
    installed.close()


# from settings


def store_settings(**values: Any) -> FeatureStoreSettings:
    return FeatureStoreSettings.model_validate({"definitions": [str(FILE)], "store": "memory://", **values})


def test_settings_open_what_they_name(tmp_path: Path, folder: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    installed = open_features(store_settings(audit_file=str(audit), audit_of_rows=1))
    assert isinstance(installed, Installed)
    try:
        before_us = wall_us()
        bound = installed.bind(KEY, folder, settings(), SIGNATURE)
        assert bound is not None
        bound.join(call(3, 6), 2, 1.0)
        assert installed.readings().samples_dropped == 0
    finally:
        installed.close()
    (sample,) = read_samples([audit])
    assert (sample.origin, sample.statuses["carrier_delay"].tolist()) == ("delay:4", [0x84, 0x84])
    assert before_us <= sample.as_of_us[0] <= wall_us()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"definitions": ["gone.py"]}, "definitions 'gone.py' are no Python file"),
        ({"store": "postgres://somewhere"}, "the URL of a store starts with one of redis://"),
        ({"audit_file": "/dev/null/audit"}, "audit_file: samples cannot be written to '/dev/null/audit'"),
    ],
)
def test_what_cannot_be_opened_is_told_at_the_start(values: dict[str, Any], text: str) -> None:
    with pytest.raises(Unsupported, match=text):
        open_installed(store_settings(**values))


def test_definitions_that_fail_are_told_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import numpy\n\nraise KeyError('no such thing')\n")
    with pytest.raises(Unsupported, match=r"broken\.py:3: KeyError: 'no such thing'"):
        open_installed(store_settings(definitions=[str(tmp_path / "broken.py")]))


def test_what_is_sampled_is_what_an_audit_recomputes(store: MemoryStore, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    event_us = np.sort(rng.integers(0, hours(30), 400))
    carriers = np.array([b"A", b"B", b"C"], dtype=object)[rng.integers(0, 3, 400)]
    events = {"flights": {"event_us": event_us, "carrier": carriers, "delay": rng.normal(10, 9, 400)}}
    rows = find(history_of(carrier_delays, events["flights"]), {"carrier": np.unique(carriers)}, np.full(3, hours(31)))
    keys = row_keys("podium", carrier_delays, {"carrier": np.unique(carriers)})
    packed = pack(
        carrier_delays, stamp_of(fingerprint(carrier_delays)), rows.values, rows.nulls, rows.event_us, rows.available_us
    )
    store.write(list(zip(keys, packed, strict=True)), 0)
    write_contract(tmp_path, TRAINED)
    sampler = SampleWriter(tmp_path / "audit.jsonl", 1.0, 10**6)
    definitions = load_definitions([FILE])
    installed = Installed(definitions, store, store_settings(), sampler=sampler, now_us=lambda: hours(31))
    bound = installed.bind(KEY, tmp_path, settings(), SIGNATURE)
    assert bound is not None
    carrier, day = texts(b"A", b"C", b"unknown", b"B"), column(np.int64, 1, 6, 5, 2)
    some = column(np.float32, 1, 2, 3, 4)
    bound.join({"carrier": carrier, "day": day}, 4, 1.0)
    bound.join({"carrier": carrier, "day": day, "carrier_delay": some}, 4, 1.0)
    bound.join({"carrier": carrier, "weekend": some, "delay_scaled": some}, 4, 1.0)
    bound.join({"carrier": carrier, "x": np.ones((4, 3), np.float32)}, 4, 1.0)
    bound.join({"carrier_flights": column(np.int64, 1, 2, 3, 4), "day": day, "carrier_delay": some}, 4, 1.0)
    installed.close()
    report = audit(read_samples([tmp_path / "audit.jsonl"]), {"delay:4": TRAINED}, events)
    assert (report.rows, report.mismatches) == (20, 0)


# with a real model


def linear(folder: Path) -> None:
    """y = x[0] + 10 x[1] + 100 x[2] + carrier_flights."""
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["of_x"]),
        helper.make_node("Cast", ["carrier_flights"], ["flights"], to=1),
        helper.make_node("Add", ["of_x", "flights"], ["y"]),
    ]
    weights = helper.make_tensor("weights", 1, [3, 1], [1.0, 10.0, 100.0])
    inputs: dict[str, Any] = {"x": ("FP32", ["N", 3]), "carrier_flights": ("INT64", ["N", 1])}
    (folder / "model.onnx").write_bytes(graph(nodes, inputs, {"y": ("FP32", ["N", 1])}, weights))


@pytest.fixture
def load(folder: Path) -> Iterator[Callable[..., Loaded]]:
    linear(folder)
    opened: list[Loaded] = []

    def load(bind: Any, given: ModelSettings) -> Loaded:
        loaded = loader_over(lambda found: None, None, bind).load(Version(KEY, folder=folder), given)
        opened.append(loaded)
        return loaded

    yield load
    for each in opened:
        each.backend.close()


QUICK = {"max_batch": 4, "warmup": {"runs": 1}}


def test_a_loaded_version_answers_from_its_features(
    load: Callable[..., Loaded], installed: Installed, store: MemoryStore
) -> None:
    fill(store, b"AA", 6, 12)
    loaded = load(installed.bind, ModelSettings.model_validate({"features": FEATURES, **QUICK}))
    bound = loaded.features
    assert isinstance(bound, Bound)
    joined = bound.join(call(3, 6), 2, 1.0)
    assert loaded.backend.run(joined.inputs)["y"].tolist() == [[6 + 200 + 12], [6 + 10 + 200 + 12]]
    assert set(loaded.backend.signature.input_names) == {"x", "carrier_flights"}
    assert {"carrier", "day", "weekend"} < set(bound.signature.input_names)


def test_a_version_that_is_refused_is_not_loaded_but_can_be_proven(load: Callable[..., Loaded]) -> None:
    without = open_features(FeatureStoreSettings())
    given = ModelSettings.model_validate({"features": FEATURES, **QUICK})
    with pytest.raises(LoadFailed, match=r"^features: 'delay' was trained on features"):
        load(without.bind, given)
    # reproducing a version has no server, and needs none: it proves the file
    assert load(None, given).features is None
