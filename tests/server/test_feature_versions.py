"""Versions of one model that read different versions of a view, coming and going under load: answers as training has them."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from onnx import helper

from feature_client.contract import write_contract
from feature_client.definitions import load_definitions
from feature_client.feature_set import FeatureSet
from feature_client.materialize import materialize
from feature_client.point_in_time import training_set
from feature_client.redis_store import RedisStore
from protos import grpc_service_pb2 as pb
from tests.feature_client.servers import tcp_server
from tests.server.models import Shape, graph, put
from tests.server.serving import Serving, infer_message, until

DEFINITIONS = """
import numpy as np

from feature_client.aggregation import count, last
from feature_client.schema import Entity, EventLog, Feature, days
from feature_client.view import feature_view

AIRCRAFT = Entity("aircraft", {"tail": "bytes"})
FLIGHTS = EventLog("flights", {"tail": "bytes", "event_us": "int64", "delay_min": "float64"})
INPUTS = {"delay": last("delay_min"), "flights": count(days(1))}
FEATURES = [Feature("tail_delay", "float32", 5.0), Feature("tail_flights", "float32", 0.25)]


@feature_view(entity=AIRCRAFT, source=FLIGHTS, inputs=INPUTS, features=FEATURES)
def aircraft(delay, flights):
    return {"tail_delay": delay.astype(np.float32), "tail_flights": flights.astype(np.float32)}


@feature_view(name="aircraft", version=2, entity=AIRCRAFT, source=FLIGHTS, inputs=INPUTS, features=FEATURES)
def aircraft_by_the_hour(delay, flights):
    return {"tail_delay": (delay / 60).astype(np.float32), "tail_flights": np.log1p(flights).astype(np.float32)}


@feature_view(inputs={"distance_mi": "float64", "tail_delay": "float32"}, features=[Feature("flight_min", "float32", 90.0)])
def planned(distance_mi, tail_delay):
    if (distance_mi == -6543.25).any():
        raise ValueError("nobody flies this")
    return {"flight_min": (distance_mi / 8 + tail_delay).astype(np.float32)}
"""
SETTINGS = """
max_batch = 16
[warmup]
runs = 1
[versions]
policy = "all"
[features]
views = [{ view = "aircraft@1" }, { view = "aircraft@2" }, { view = "planned@1" }]
"""
NAMES = ("tail_delay", "tail_flights", "flight_min")
TAILS = [*(b"N%d" % number for number in range(200)), b"\xff\xfe{}|:%\x00", "Ærø".encode(), b"y" * 512]
STRANGERS = [b"nobody", b"\x80\x81", b"x" * 10_000]
CALLERS = 12


@dataclass
class Trained:
    """What training has for each tail, by the version of the view."""

    repository: Path
    features: dict[int, FeatureSet]
    events: dict[str, Any]

    def publish(self, version: int, view_version: int) -> None:
        column: tuple[str, Shape] = ("FP32", ["N", 1])
        node = helper.make_node("Concat", list(NAMES), ["y"], axis=1)
        model = graph([node], dict.fromkeys(NAMES, column), {"y": ("FP32", ["N", len(NAMES)])})
        bundle = self.repository.parent / f"bundle-{version}"
        bundle.mkdir()
        write_contract(bundle, self.features[view_version], reads=list(NAMES))
        files = {"model.onnx": model} | {path.name: path.read_bytes() for path in bundle.iterdir()}
        put(self.repository, "flights", version, files, SETTINGS)

    def expected(self, view_version: int, tails: list[bytes], miles: list[float]) -> Any:
        """Shapes: float32 `[N, 3]`."""
        keys, now_us = np.array(tails, dtype=object), np.full(len(tails), time.time_ns() // 1000)
        request = {"distance_mi": np.array(miles)}
        made = training_set(self.features[view_version], {"flights": self.events}, now_us, {"tail": keys}, request)
        return np.stack([made.values[name] for name in NAMES], axis=1)


def events() -> dict[str, Any]:
    randomness = np.random.default_rng(7)
    tails = np.array(TAILS, dtype=object)[randomness.integers(0, len(TAILS), 3000)]
    tails[: len(TAILS)] = TAILS
    now_us = time.time_ns() // 1000
    return {
        "tail": tails,
        "event_us": np.sort(now_us - randomness.integers(10**9, 10**11, 3000)),
        "delay_min": randomness.normal(20, 40, 3000),
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[tuple[Trained, Serving]]:
    home = tmp_path_factory.mktemp("versions")
    repository = home / "repository"
    repository.mkdir()
    path = home / "definitions.py"
    path.write_text(DEFINITIONS)
    views = (definitions := load_definitions([path])).views
    sets = {number: FeatureSet([views[f"aircraft@{number}"], views["planned@1"]]) for number in (1, 2)}
    made = Trained(repository, sets, events())
    made.publish(1, 1)
    with tcp_server(home / "store") as store:
        filled = RedisStore(store.url)
        stored = [views["aircraft@1"], views["aircraft@2"]]
        materialize(filled, "podium", stored, definitions.fingerprints, {"flights": made.events})
        filled.close()
        serving = Serving(
            repository,
            home,
            features={"definitions": [str(path)], "store": store.url, "budget_us": 5_000_000},
            rescan_s=0.05,
            data_plane=plane,
        )
        try:
            yield made, serving
        finally:
            # a definition that fails says so once a load
            serving.stop(errors=("features cannot be computed",))


def column(datatype: str, values: Any) -> tuple[str, list[int], bytes]:
    if datatype == "BYTES":
        return datatype, [len(values), 1], b"".join(len(value).to_bytes(4, "little") + value for value in values)
    return datatype, [len(values), 1], np.ascontiguousarray(values).tobytes()


class Caller:
    """Asks in every way that there is, and compares each answer with what training has for the version that gave it."""

    def __init__(self, trained: Trained, seed: int, expected: dict[int, dict[bytes, Any]]) -> None:
        self.trained, self.random, self.expected = trained, np.random.default_rng(seed), expected
        self.answered: dict[int, int] = {}
        self.refused = 0

    def ask(self, stub: Any, version: str = "") -> None:
        rows = int(self.random.integers(1, 7))
        tails = [[*TAILS, *STRANGERS][number] for number in self.random.integers(0, len(TAILS) + len(STRANGERS), rows)]
        miles = self.random.integers(0, 4000, rows).astype(np.float64)
        own = self.random.normal(0, 9, (rows, 3)).astype(np.float32)
        kind = self.random.choice(["keys", "override", "whole", "failing"], p=[0.5, 0.25, 0.2, 0.05])
        inputs = {"tail": column("BYTES", tails), "distance_mi": column("FP64", miles)}
        if kind == "override":
            inputs["tail_delay"] = column("FP32", own[:, 0])
        elif kind == "whole":
            inputs = {name: column("FP32", own[:, index]) for index, name in enumerate(NAMES)}
        elif kind == "failing":
            miles[-1] = -6543.25
            inputs["distance_mi"] = column("FP64", miles)
        try:
            response = stub.ModelInfer(infer_message("flights", inputs, model_version=version), timeout=60)
        except grpc.RpcError as error:
            if kind != "failing" or error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            self.refused += 1
            return
        assert kind != "failing"
        number = int(response.model_version)
        self.answered[number] = self.answered.get(number, 0) + 1
        want = own if kind == "whole" else self._made(number, tails, miles, own[:, 0] if kind == "override" else None)
        assert response.raw_output_contents[0] == want.tobytes(), (number, kind, tails)

    def _made(self, number: int, tails: list[bytes], miles: Any, delay: Any) -> Any:
        known = self.expected[2 if number == 2 else 1]
        want = np.stack([known[tail] for tail in tails])
        if delay is not None:
            want[:, 0] = delay
        want[:, 2] = (miles / 8 + want[:, 0]).astype(np.float32)
        return want


def test_versions_come_and_go_and_every_answer_is_what_training_has(trained: tuple[Trained, Serving]) -> None:
    made, serving = trained
    everybody = [*TAILS, *STRANGERS]
    expected: dict[int, dict[bytes, Any]] = {}
    for number in (1, 2):
        # no such entity can be in a log, nor in a store
        known = made.expected(number, everybody[:-1], [0.0] * (len(everybody) - 1))
        expected[number] = dict(zip(everybody, [*known, known[-1]], strict=True))
    assert (expected[1][b"nobody"] == [5.0, 0.25, 5.0]).all()
    callers = [Caller(made, seed, expected) for seed in range(CALLERS)]
    over = threading.Event()

    def go_on(caller: Caller) -> None:
        with serving.stub() as stub:
            while not over.is_set():
                caller.ask(stub)

    def served() -> set[int]:
        return {number for caller in callers for number in list(caller.answered)}

    with ThreadPoolExecutor(CALLERS) as pool, serving.stub() as stub:
        running = [pool.submit(go_on, caller) for caller in callers]
        try:
            until(lambda: 1 in served() or any(one.done() for one in running), "answers of version 1")
            made.publish(2, 2)
            until(lambda: 2 in served() or any(one.done() for one in running), "answers of version 2")
            # champion and challenger, each by its own view
            pinned = Caller(made, 99, expected)
            for _ in range(30):
                pinned.ask(stub, "1")
                pinned.ask(stub, "2")
            assert min(pinned.answered.values()) > 10
            gone = made.repository.parent / "gone"
            (made.repository / "flights" / "1").rename(gone)
            contract = 'podium_feature_contract_ok{model="flights",version="1"}'
            until(lambda: contract not in serving.http("/metrics")[1], "the end of a version's gauge")
            made.publish(3, 1)
            until(lambda: 3 in served() or any(one.done() for one in running), "answers of version 3")
        finally:
            over.set()
        for one in running:
            one.result(60)
        index = {row.version: row.state for row in stub.RepositoryIndex(pb.RepositoryIndexRequest()).models}
    assert index == {"2": "READY", "3": "READY"}
    assert sum(caller.refused for caller in callers) > 0
