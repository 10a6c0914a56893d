"""What an application uses: views by name, keys as it has them, features with statuses; numpy and redis and nothing else."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from feature_client.client import AsyncFeatureClient, FeatureClient, columns_of
from feature_client.definitions import definitions_of
from feature_client.errors import DefinitionError, EntityError, StoreError
from feature_client.feast import FeastReader
from feature_client.feast_view import feast_view
from feature_client.fingerprint import stamp_of
from feature_client.keys import row_keys
from feature_client.row import pack
from feature_client.schema import DEFAULTED, US_PER_S, Array, Feature, Status
from feature_client.view import View
from tests.feature_client.servers import Server, tcp_server
from tests.feature_client.views import aircraft

ROOT = Path(__file__).parents[2]
LONG_S = 30.0
DRIVER = feast_view("driver", entity="driver", keys={"driver_id": "int64"}, features=[Feature("rating", "float32", 2.5)])
NOW_US = time.time_ns() // 1000


def texts(*values: bytes) -> Array:
    column = np.empty(len(values), object)
    column[:] = values
    return column


def rows_of(view: View, count: int) -> list[bytes]:
    values: dict[str, Array] = {}
    for feature in view.features:
        if feature.dtype == "bytes":
            values[feature.name] = texts(*[b"text"] * count)
        else:
            shape = (count, *feature.shape)
            values[feature.name] = np.ones(shape, feature.dtype) * np.arange(count, dtype=np.int8).reshape(
                count, *(1 for _ in feature.shape)
            )
            values[feature.name] = values[feature.name].astype(feature.dtype)
    nulls = np.zeros((count, len(view.features)), np.bool_)
    times = np.full(count, NOW_US - 60 * US_PER_S)
    stamp = stamp_of(definitions_of([view]).fingerprints[view.ref])
    return pack(view, stamp, values, nulls, times, times)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with tcp_server(tmp_path_factory.mktemp("server")) as running:
        for key, row in zip(row_keys("shop", aircraft, {"tail": np.arange(5)}), rows_of(aircraft, 5), strict=True):
            running.admin.set(key, row)
        yield running


def test_from_threads_and_from_asyncio_alike(server: Server) -> None:
    keys = {"tail": [3, 4_000, None, 1, "N123"]}
    with FeatureClient([aircraft], server.url, "shop") as client:
        ours = client.read(aircraft.ref, keys, LONG_S)
        assert dict(client.readings()[0].rows) == {"PRESENT": 2, "NOT_FOUND": 3}
        assert client.store_reading().calls == 1

    async def scene() -> None:
        async with AsyncFeatureClient(definitions_of([aircraft]), server.url, "shop") as client:
            theirs = await client.read(aircraft.ref, keys, LONG_S)
            assert theirs.statuses.tolist() == ours.statuses.tolist()
            assert {name: column.tolist() for name, column in theirs.values.items()} == {
                name: column.tolist() for name, column in ours.values.items()
            }
            alone = await asyncio.gather(*(client.read(aircraft.ref, {"tail": [at]}, LONG_S) for at in range(5)))
            assert [served.values["tail_flights"].tolist() for served in alone] == [[at] for at in range(5)]
            assert dict(client.readings()[0].rows) == {"PRESENT": 7, "NOT_FOUND": 3}
            assert client.store_reading().breaker == "closed"

    asyncio.run(scene())
    # what cannot be a key is an entity without a row, and harms no other
    assert (ours.statuses[:, 0] & 0x7F).tolist() == [0, Status.NOT_FOUND, Status.NOT_FOUND, 0, Status.NOT_FOUND]
    assert ours.values["tail_flights"].tolist() == [3, 0, 0, 1, 0]


def test_definitions_may_be_files(server: Server) -> None:
    with FeatureClient([ROOT / "tests/feature_client/views.py"], server.url, "shop", cache_bytes=0) as client:
        assert client.read("aircraft@2", {"tail": np.array([2])}, LONG_S).values["tail_flights"].tolist() == [2]
        with pytest.raises(DefinitionError, match="no stored view 'aircraft@9'; there is: aircraft@2"):
            client.read("aircraft@9", {"tail": [1]})
    with pytest.raises(DefinitionError, match="not both"):
        FeatureClient([aircraft, ROOT], server.url)  # type: ignore[arg-type]  # which is the mistake


def test_views_of_feasts_are_read_beside_others(server: Server) -> None:
    feast = FeastReader(server.url, "shop")
    with FeatureClient([aircraft, DRIVER], server.url, "shop", feast=feast) as client:
        served = client.read(DRIVER.ref, {"driver_id": [1]}, LONG_S)
        assert served.values["rating"].tolist() == [2.5]
        assert served.statuses.tolist() == [[Status.NOT_FOUND | DEFAULTED]]
    feast.close()
    with FeatureClient([DRIVER], server.url) as client, pytest.raises(DefinitionError, match="FeastReader"):
        client.read(DRIVER.ref, {"driver_id": [1]})

    async def scene() -> None:
        async with AsyncFeatureClient([DRIVER], server.url) as client:
            await client.read(DRIVER.ref, {"driver_id": [1]})

    with pytest.raises(DefinitionError, match="threads only"):
        asyncio.run(scene())


def test_columns_that_cannot_be_keys(server: Server) -> None:
    with FeatureClient([aircraft], server.url) as client:
        with pytest.raises(EntityError, match="'tail' of 'aircraft' is missing"):
            client.read(aircraft.ref, {"id": [1]})
        with pytest.raises(EntityError, match=r"must be an array \[N\]"):
            client.read(aircraft.ref, {"tail": np.zeros((1, 1), np.int64)})
        # further columns are not looked at, whatever their length
        assert len(client.read(aircraft.ref, {"tail": [None, 1], "other": [1]}, LONG_S).refused) == 2


def test_a_store_that_does_not_answer_is_a_status() -> None:
    url = "redis://127.0.0.1:1"
    with FeatureClient([aircraft], url, fail_on_timeout=True) as client:
        served = client.read(aircraft.ref, {"tail": [1]}, 0.1)
        assert served.statuses[0, 0] == Status.TIMEOUT
        assert served.refused.tolist() == [True]

    async def scene() -> None:
        async with AsyncFeatureClient([aircraft], url) as client:
            served = await client.read(aircraft.ref, {"tail": [1]}, 0.1)
            assert served.statuses[0, 0] == Status.TIMEOUT | DEFAULTED
            assert served.values["tail_delay"].tolist() == [5.0]

    asyncio.run(scene())


def test_asyncio_needs_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    with pytest.raises(StoreError, match="REDIS_URL"):
        AsyncFeatureClient([aircraft])
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    AsyncFeatureClient([aircraft])


def test_keys_as_applications_have_them() -> None:
    columns = columns_of({"a": [1, 2], "b": ["Zürich", b"x"], "c": np.array([1], np.int32), "d": [2**70], "e": [True]})
    assert columns["a"].dtype == np.int64
    assert columns["b"].tolist() == ["Zürich".encode(), b"x"]
    assert columns["c"].dtype == np.int32
    assert columns["d"].dtype == columns["e"].dtype == object


def test_an_application_needs_numpy_and_redis_only() -> None:
    """Imported in a process of its own: nothing of the server comes with it, nor what only tables or messages need."""
    code = "import sys, feature_client.client; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    loaded = set(told.stdout.strip()[1:-1].replace("'", "").split(", "))
    assert {"numpy", "redis", "feature_client"} <= loaded
    assert not loaded & {"pyarrow", "pandas", "pydantic", "grpc", "google", "protos", "server", "torch", "onnxruntime", "tqdm"}
