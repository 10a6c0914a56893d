"""A version whose features Feast has written: from its store, as it is, to the arrays of a batch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from feature_client.contract import write_contract
from feature_client.errors import EventError
from feature_client.feature_set import FeatureSet
from feature_client.materialize import materialize
from feature_client.memory_store import MemoryStore
from feature_client.point_in_time import history_of
from feature_client.schema import DEFAULTED, Status
from feature_client.stream import Push
from server.core.errors import LoadFailed, Unsupported
from server.core.feature_settings import FeatureStoreSettings
from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.features.installed import Installed, open_installed
from tests.feature_client.feast_store import FIXTURE, feast_server
from tests.feature_client.servers import Server
from tests.features.examples import column, model, texts
from tests.features.routes_of_feast import ROUTE, delayed

DEFINITIONS = Path(__file__).with_name("routes_of_feast.py")
KEY = VersionKey("routes", 1)
SIGNATURE = model({"route_delay": ("FP32", (1,)), "delayed": ("FP32", (1,))})
SETTINGS = ModelSettings.model_validate({"features": {"views": [{"view": "route@1"}, {"view": "delayed@1"}], "as_of": "at_us"}})
NEWEST_US = FIXTURE["given"]["route_stats"]["event_timestamp"][0]


def settings(**values: Any) -> FeatureStoreSettings:
    return FeatureStoreSettings.model_validate({"definitions": [str(DEFINITIONS)], "store": "memory://", **values})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with feast_server(tmp_path_factory.mktemp("feast")) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("version")
    write_contract(made, FeatureSet([ROUTE, delayed]))
    return made


@pytest.fixture
def installed(server: Server, tmp_path: Path) -> Iterator[Installed]:
    audit = {"audit_file": str(tmp_path / "served.jsonl"), "audit_of_rows": 1}
    made = open_installed(settings(feast_store=server.url, feast_project=FIXTURE["project"], **audit))
    yield made
    made.close()


def call(*routes: tuple[bytes, int], at_us: int = NEWEST_US) -> dict[str, Any]:
    return {
        "origin": texts(*(origin for origin, _ in routes)),
        "gate": column(np.int64, *(gate for _, gate in routes)),
        "at_us": column(np.int64, *(at_us for _ in routes)),
    }


def test_feasts_rows_are_served_and_what_cannot_be_one_of_its_entities_fails_alone(installed: Installed, folder: Path) -> None:
    bound = installed.bind(KEY, folder, SETTINGS, SIGNATURE)
    assert bound is not None
    joined = bound.join(call((b"JFK", 3), (b"x" * 600, 3), (b"ZRH", -1), (b"JFK", 4), (b"JFK", 2**40)), 5, 10.0)
    assert joined.inputs["route_delay"].ravel().tolist() == [12.5, 0.5, 0.5, 0.5, 0.5]
    assert joined.inputs["delayed"].ravel().tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    missing = Status.NOT_FOUND | DEFAULTED
    # the second route was last seen thirty hours before the first
    assert joined.statuses[:, 0].tolist() == [Status.PRESENT, missing, Status.STALE | DEFAULTED, missing, missing]
    assert not joined.refused.any()
    nobody = bound.join(call((b"x" * 600, 3)), 1, 10.0)
    assert nobody.statuses[:, 0].tolist() == [missing]


def test_no_budget_is_a_status(installed: Installed, folder: Path) -> None:
    bound = installed.bind(KEY, folder, SETTINGS, SIGNATURE)
    assert bound is not None
    assert bound.join(call((b"JFK", 3)), 1, 0.0).statuses[:, 0].tolist() == [Status.TIMEOUT | DEFAULTED]


def test_what_feast_computed_is_no_sample(installed: Installed, folder: Path, tmp_path: Path) -> None:
    bound = installed.bind(KEY, folder, SETTINGS, SIGNATURE)
    assert bound is not None
    bound.join(call((b"JFK", 3)), 1, 10.0)
    installed.close()
    assert (tmp_path / "served.jsonl").read_bytes() == b""


def test_a_version_with_feasts_rows_needs_to_know_where_they_are(folder: Path) -> None:
    installed = open_installed(settings())
    try:
        with pytest.raises(LoadFailed, match=r"route@1: Feast's rows are read where the server's features\.feast_store says"):
            installed.bind(KEY, folder, SETTINGS, SIGNATURE)
    finally:
        installed.close()
    with pytest.raises(Unsupported, match="feast_store: the URL of a store"):
        open_installed(settings(feast_store="nowhere", feast_project="p"))
    with pytest.raises(ValidationError, match="feast_store and feast_project are stated together"):
        settings(feast_store="redis://localhost")


def test_feasts_rows_are_never_computed_here() -> None:
    events = {name: np.zeros(1, np.int64) for name in ("gate", "event_us")} | {"origin": np.array([b"JFK"], dtype=object)}
    text = "'route@1' is .*not computed from events"
    with pytest.raises(EventError, match=text):
        history_of(ROUTE, events)
    with pytest.raises(EventError, match=text):
        materialize(MemoryStore(), "podium", [ROUTE], {ROUTE.ref: bytes(32)}, {"feast_route": events})
    with pytest.raises(EventError, match=text):
        Push(MemoryStore(), "podium", [ROUTE], {ROUTE.ref: bytes(32)})
