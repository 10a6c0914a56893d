"""Features end to end: a real server and a real store, as callers and operators meet them."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from onnx import helper

from feature_client.contract import write_contract
from feature_client.definitions import Definitions, load_definitions
from feature_client.feature_set import FeatureSet
from feature_client.fingerprint import stamp_of
from feature_client.keys import row_keys
from feature_client.redis_store import RedisStore
from feature_client.row import pack
from protos import grpc_service_pb2 as pb
from tests.feature_client.servers import Server, tcp_server
from tests.server.models import Shape, graph, put
from tests.server.serving import Serving, infer_message, refusal, until

DEFINITIONS = '''
"""What the models of these tests were trained on."""

import numpy as np

from feature_client.aggregation import count, last
from feature_client.schema import Entity, EventLog, Feature, days
from feature_client.view import feature_view

AIRCRAFT = Entity("aircraft", {"tail": "bytes"})
FLIGHTS = EventLog("flights", {"tail": "bytes", "route": "bytes", "event_us": "int64", "delay_min": "float64"})
MILES_PER_MIN = 8.0


@feature_view(
    entity=AIRCRAFT,
    source=FLIGHTS,
    inputs={"delay": last("delay_min"), "flights": count(days(1))},
    features=[Feature("tail_delay", "float32", 5.0, unit="min"), Feature("tail_flights", "float32", 0.0)],
    max_age_us=days(1),
)
def aircraft(delay, flights):
    return {"tail_delay": delay.astype(np.float32), "tail_flights": flights.astype(np.float32)}


@feature_view(
    inputs={"distance_mi": "float64", "tail_delay": "float32"}, features=[Feature("flight_min", "float32", 90.0, unit="min")]
)
def planned(distance_mi, tail_delay):
    return {"flight_min": (distance_mi / MILES_PER_MIN + tail_delay).astype(np.float32)}


@feature_view(
    entity=Entity("route", {"route": "bytes"}),
    source=FLIGHTS,
    inputs={"delay": last("delay_min")},
    features=[Feature("route_delay", "float32", 0.0, unit="min")],
    on_missing="fail",
)
def route(delay):
    return {"route_delay": delay.astype(np.float32)}
'''
SETTINGS = """
max_batch = 32
[warmup]
runs = 1
[features]
"""
FLIGHTS = SETTINGS + 'views = [{ view = "aircraft@1" }, { view = "planned@1" }]\nas_of = "at_us"\n'
GUARDED = (
    FLIGHTS
    + """[validation]
inputs = [
  { name = "tail_delay", complete = true },
  { name = "flight_min", at_most = 500 },
  { name = "distance_mi", at_least = 0 },
]
"""
)
ROUTES = SETTINGS + 'views = [{ view = "route@1" }]\non_timeout = "fail"\n'
ROWS = 2000
"""Tails and routes that have a row: number N has a delay of N minutes, and as many flights."""
BUDGET_US = 50_000
HOUR_US = 3_600_000_000


def feature_set(definitions: Definitions, *refs: str) -> FeatureSet:
    return FeatureSet([definitions.views[ref] for ref in refs])


def put_trained(repository: Path, name: str, inputs: Sequence[str], features: FeatureSet, settings: str) -> None:
    """A model whose answer is its inputs side by side, and the contract of its training."""
    column: tuple[str, Shape] = ("FP32", ["N", 1])
    node = helper.make_node("Concat", list(inputs), ["y"], axis=1)
    model = graph([node], dict.fromkeys(inputs, column), {"y": ("FP32", ["N", len(inputs)])})
    bundle = repository.parent / f"bundle-{name}"
    bundle.mkdir()
    write_contract(bundle, features, reads=list(inputs))
    put(repository, name, 1, {"model.onnx": model} | {path.name: path.read_bytes() for path in bundle.iterdir()}, settings)


def fill(url: str, definitions: Definitions, event_us: int) -> None:
    """The rows of all entities, as whoever materialises writes them."""
    numbers = np.arange(ROWS)
    names = np.array([b"N%d" % number for number in numbers], dtype=object)
    delay = numbers.astype(np.float32)
    values = {"aircraft@1": {"tail_delay": delay, "tail_flights": delay}, "route@1": {"route_delay": delay}}
    store = RedisStore(url)
    try:
        for (ref, columns), key in zip(values.items(), ("tail", "route"), strict=True):
            view = definitions.views[ref]
            nulls = np.zeros((ROWS, len(columns)), np.bool_)
            times = np.full(ROWS, event_us)
            rows = pack(view, stamp_of(definitions.fingerprints[ref]), columns, nulls, times, times)
            assert store.write(list(zip(row_keys("podium", view, {key: names}), rows, strict=True)), 0) == ROWS
    finally:
        store.close()


@dataclass
class Place:
    """A store with rows, and a repository of models that were trained on them."""

    store: Server
    repository: Path
    definitions: Path
    event_us: int
    plane: str

    def serve(self, home: Path, definitions: Path | None = None, **features: Any) -> Serving:
        home.mkdir()
        table = {"definitions": [str(definitions or self.definitions)], "store": self.store.url, **features}
        return Serving(self.repository, home, data_plane=self.plane, features=table)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("features")
    repository = home / "repository"
    repository.mkdir()
    path = home / "definitions.py"
    path.write_text(DEFINITIONS)
    definitions = load_definitions([path])
    flights, routes = feature_set(definitions, "aircraft@1", "planned@1"), feature_set(definitions, "route@1")
    put_trained(repository, "flights", ["tail_delay", "tail_flights", "flight_min"], flights, FLIGHTS)
    put_trained(repository, "guarded", ["tail_delay", "tail_flights", "flight_min"], flights, GUARDED)
    put_trained(repository, "routes", ["route_delay"], routes, ROUTES)
    event_us = time.time_ns() // 1000
    with tcp_server(home / "store") as store:
        fill(store.url, definitions, event_us)
        yield Place(store, repository, path, event_us, plane)


@pytest.fixture(scope="module")
def serving(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """With a budget that no machine is too slow for."""
    server = place.serve(tmp_path_factory.mktemp("serving") / "home", budget_us=5_000_000)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def frozen(place: Place, tmp_path: Path) -> Iterator[Serving]:
    """A server whose store has stopped answering since it started."""
    server = place.serve(tmp_path / "home", budget_us=BUDGET_US)
    place.store.freeze()
    try:
        yield server
    finally:
        place.store.thaw()
        server.stop()


def texts(*values: bytes) -> tuple[str, list[int], bytes]:
    return "BYTES", [len(values), 1], b"".join(len(value).to_bytes(4, "little") + value for value in values)


def numbers(datatype: str, *values: float) -> tuple[str, list[int], bytes]:
    dtype = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64}[datatype]
    return datatype, [len(values), 1], np.array(values, dtype).tobytes()


def asking(model: str, inputs: dict[str, tuple[str, list[int], bytes]], **fields: Any) -> pb.ModelInferRequest:
    message = infer_message(model, inputs, **fields)
    message.parameters["podium_features"].bool_param = True
    message.parameters["podium_timing"].bool_param = True
    return message


def flight(*tails: bytes, miles: float = 800.0, **more: tuple[str, list[int], bytes]) -> pb.ModelInferRequest:
    return asking("flights", {"tail": texts(*tails), "distance_mi": numbers("FP64", *[miles] * len(tails)), **more})


def leg(*routes: bytes) -> pb.ModelInferRequest:
    return asking("routes", {"route": texts(*routes)})


def rows(response: Any) -> list[list[float]]:
    """The features that the model was given."""
    (output,) = response.outputs
    values: list[list[float]] = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(output.shape).tolist()
    return values


def told(response: Any) -> dict[str, list[str]]:
    said: dict[str, list[str]] = json.loads(response.parameters["podium_features"].string_param)
    return said


def all_at_once(serving: Serving, messages: Sequence[Any]) -> list[Any]:
    """What each of many concurrent callers gets: an answer, or the error."""
    with serving.stub() as stub, ThreadPoolExecutor(len(messages)) as callers:

        def ask(message: Any) -> Any:
            try:
                return stub.ModelInfer(message, timeout=60)
            except grpc.RpcError as error:
                return error

        return list(callers.map(ask, messages))


def expected(tail: int, miles: float = 800.0) -> list[float]:
    return [float(tail), float(tail), miles / 8.0 + tail]


def test_a_call_with_keys_alone_is_answered_from_the_stored_rows(serving: Serving) -> None:
    with serving.stub() as stub:
        response = stub.ModelInfer(flight(b"N7", b"N31"))
        assert rows(response) == [expected(7), expected(31)]
        assert told(response) == {}
        timing = {name: parameter.int64_param for name, parameter in response.parameters.items()}
        assert 0 < timing["podium_features_us"] <= timing["podium_execute_us"] <= timing["podium_total_us"]
        silent = flight(b"N7")
        silent.parameters.clear()
        assert not stub.ModelInfer(silent).parameters


def test_constraints_are_on_features_too(serving: Serving) -> None:
    """A mixed batch: who has no row, whose feature is too large, and whose distance cannot be, beside neighbours."""
    asked = [([b"N7", b"N8"], 800.0), ([b"N9", b"nobody"], 800.0), ([b"N1"], 8000.0), ([b"N2"], -8.0), ([b"N3"], 80.0)] * 4
    messages = [flight(*tails, miles=miles) for tails, miles in asked]
    for message in messages:
        message.model_name = "guarded"
    answers = all_at_once(serving, messages)
    refused = {
        1: "'tail_delay' breaks complete in 1 of 2 rows",
        2: "'flight_min' breaks at_most = 500",
        3: "'distance_mi' breaks at_least = 0",
    }
    for index, answer in enumerate(answers):
        if index % 5 in refused:
            assert answer.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert answer.details() == f"invalid values for model 'guarded': {refused[index % 5]}"
        else:
            tails, miles = asked[index]
            assert rows(answer) == [expected(int(tail[1:]), miles) for tail in tails]


def test_what_a_call_brings_itself_is_not_looked_up(serving: Serving) -> None:
    with serving.stub() as stub:
        response = stub.ModelInfer(flight(b"N7", tail_delay=numbers("FP32", 100.0)))
        assert rows(response) == [[100.0, 7.0, 200.0]]
        assert told(response) == {"tail_delay": ["GIVEN"]}
        whole = {name: numbers("FP32", value) for name, value in (("tail_delay", 1), ("tail_flights", 2), ("flight_min", 3))}
        response = stub.ModelInfer(asking("flights", whole))
        assert rows(response) == [[1.0, 2.0, 3.0]]
        assert told(response) == {name: ["GIVEN"] for name in whole}


def test_what_is_missing_is_told_before_anything_is_executed(serving: Serving) -> None:
    with serving.stub() as stub:
        message = asking("flights", {"distance_mi": numbers("FP64", 1.0)}, id="17")
        code, text = refusal(lambda: stub.ModelInfer(message))
    assert code == "INVALID_ARGUMENT"
    assert text.startswith("[request id: 17] ")
    assert "'tail'" in text


def test_an_unknown_entity_has_the_declared_defaults(serving: Serving) -> None:
    with serving.stub() as stub:
        response = stub.ModelInfer(flight(b"N3", b"nobody", b"x" * 600))
    assert rows(response) == [expected(3), [5.0, 0.0, 105.0], [5.0, 0.0, 105.0]]
    stored = ["PRESENT", "DEFAULTED(NOT_FOUND)", "DEFAULTED(NOT_FOUND)"]
    said = told(response)
    assert said["tail_delay"] == said["tail_flights"] == stored


def test_rows_are_judged_at_the_instant_that_a_call_asks_for(serving: Serving, place: Place) -> None:
    with serving.stub() as stub:
        fresh, stale = (place.event_us + hours * HOUR_US for hours in (23, 25))
        response = stub.ModelInfer(flight(b"N3", b"N4", at_us=numbers("INT64", fresh, stale)))
    assert rows(response) == [expected(3), [5.0, 0.0, 105.0]]
    assert told(response)["tail_delay"] == ["PRESENT", "DEFAULTED(STALE)"]


def test_one_bad_entity_among_many_callers_is_refused_alone(serving: Serving) -> None:
    messages = [leg(b"nowhere") if caller == 13 else leg(b"N%d" % caller) for caller in range(32)]
    for _ in range(3):
        answers = all_at_once(serving, messages)
        refused = answers.pop(13)
        assert refused.code() == grpc.StatusCode.UNAVAILABLE
        assert refused.details() == "features are unavailable: 'route_delay' is NOT_FOUND"
        others = [caller for caller in range(32) if caller != 13]
        assert [rows(answer) for answer in answers] == [[[float(caller)]] for caller in others]
        assert all(told(answer) == {} for answer in answers)


def test_a_refused_row_is_counted_among_the_rows_of_its_request(serving: Serving) -> None:
    with serving.stub() as stub:
        code, text = refusal(lambda: stub.ModelInfer(leg(b"N1", b"nowhere", b"N2")))
    assert (code, text) == ("UNAVAILABLE", "features are unavailable in 1 of 3 rows: 'route_delay' is NOT_FOUND")


def test_a_stream_goes_on_after_a_request_without_features(serving: Serving) -> None:
    with serving.stub() as stub:
        answers = list(stub.ModelStreamInfer(iter([leg(b"N1"), leg(b"nowhere"), flight(b"N2")]), timeout=60))
    first, refused, last = answers
    assert rows(first.infer_response) == [[1.0]]
    assert refused.error_message == "features are unavailable: 'route_delay' is NOT_FOUND"
    assert rows(last.infer_response) == [expected(2)]
    assert told(last.infer_response) == {}


def test_clients_see_what_callers_bring(serving: Serving) -> None:
    with serving.stub() as stub:
        metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="flights"))
        config = stub.ModelConfig(pb.ModelConfigRequest(name="flights")).config
    inputs = {each.name: (each.datatype, list(each.shape)) for each in metadata.inputs}
    assert inputs == {
        **dict.fromkeys(("tail_delay", "tail_flights", "flight_min"), ("FP32", [-1, 1])),
        "tail": ("BYTES", [-1, 1]),
        "distance_mi": ("FP64", [-1, 1]),
        "at_us": ("INT64", [-1, 1]),
    }
    assert [each.name for each in metadata.outputs] == ["y"]
    assert {each.name for each in config.input if each.optional} == set(inputs)


def test_a_triton_client_needs_nothing_new(serving: Serving) -> None:
    client = triton.InferenceServerClient(serving.grpc_address)
    try:
        tails = triton.InferInput("tail", [2, 1], "BYTES")
        tails.set_data_from_numpy(np.array([["N5"], ["nobody"]], dtype=object))
        miles = triton.InferInput("distance_mi", [2, 1], "FP64")
        miles.set_data_from_numpy(np.full((2, 1), 80.0))
        result = client.infer("flights", [tails, miles], parameters={"podium_features": True})
        assert result.as_numpy("y").tolist() == [expected(5, 80.0), [5.0, 0.0, 15.0]]
        assert told(result.get_response())["tail_delay"] == ["PRESENT", "DEFAULTED(NOT_FOUND)"]
    finally:
        client.close()


def test_operators_see_what_was_served(serving: Serving) -> None:
    with serving.stub() as stub:
        stub.ModelInfer(flight(b"N1", b"nobody"))
    text = serving.http("/metrics")[1]
    shown = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    assert shown['podium_feature_contract_ok{model="flights",version="1"}'] == 1
    assert shown['podium_feature_contract_ok{model="routes",version="1"}'] == 1
    assert shown['podium_feature_values_total{status="PRESENT",view="aircraft@1"}'] >= 2
    assert shown['podium_feature_values_total{status="DEFAULTED(NOT_FOUND)",view="aircraft@1"}'] >= 2
    assert shown["podium_feature_store_calls_total"] >= 1
    assert shown["podium_feature_keys_total"] >= shown["podium_feature_cache_hits_total"]
    assert shown["podium_feature_breaker_open"] == 0
    assert shown['podium_feature_seconds_count{model="flights",version="1"}'] >= 1


def test_features_take_no_more_than_their_part_of_a_deadline(serving: Serving, place: Place) -> None:
    place.store.freeze()
    try:
        with serving.stub() as stub:
            response = stub.ModelInfer(flight(b"N900"), timeout=4)
    finally:
        place.store.thaw()
    assert told(response)["tail_delay"] == ["DEFAULTED(TIMEOUT)"]
    # of a budget of 5 s and a deadline in 4 s: 30 % of the latter
    assert 500_000 < response.parameters["podium_features_us"].int64_param < 2_500_000


def test_a_frozen_store_costs_values_never_answers(frozen: Serving, place: Place) -> None:
    answers = all_at_once(frozen, [flight(b"N%d" % tail) for tail in range(32)])
    for answer in answers:
        assert rows(answer) == [[5.0, 0.0, 105.0]]
        assert told(answer)["tail_delay"] == told(answer)["tail_flights"] == ["DEFAULTED(TIMEOUT)"]
        # twice the budget and more is for a machine that is busy with something else
        assert answer.parameters["podium_features_us"].int64_param < 2 * BUDGET_US + 200_000
    with frozen.stub() as stub:
        for tail in range(100, 106):
            stub.ModelInfer(flight(b"N%d" % tail))
        breaker = "podium_feature_breaker_open"
        assert f"\n{breaker} 1.0\n" in frozen.http("/metrics")[1]
        began = time.monotonic()
        stub.ModelInfer(flight(b"N106"))
        assert time.monotonic() - began < 5
        place.store.thaw()
        until(lambda: rows(stub.ModelInfer(flight(b"N200"))) == [expected(200)], "the store's values", patience_s=5)
        assert told(stub.ModelInfer(flight(b"N201"))) == {}
        assert f"\n{breaker} 0.0\n" in frozen.http("/metrics")[1]


def test_where_no_default_may_stand_in_only_those_without_values_are_refused(place: Place, tmp_path: Path) -> None:
    server = place.serve(tmp_path / "home", budget_us=BUDGET_US)
    try:
        with server.stub() as stub:
            until(lambda: answered(lambda: stub.ModelInfer(leg(b"N0", b"N1", b"N2"))), "rows to remember")
            place.store.freeze()
            try:
                answers = all_at_once(server, [leg(b"N%d" % (number if number < 3 else 300 + number)) for number in range(16)])
            finally:
                place.store.thaw()
        assert [rows(answer) for answer in answers[:3]] == [[[0.0]], [[1.0]], [[2.0]]]
        for error in answers[3:]:
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert error.details() == "features are unavailable: 'route_delay' is TIMEOUT"
    finally:
        server.stop()


def answered(call: Callable[[], Any]) -> bool:
    try:
        call()
    except grpc.RpcError:
        return False
    return True


def test_other_definitions_keep_a_version_out_and_say_how_they_differ(place: Place, tmp_path: Path) -> None:
    other = tmp_path / "definitions.py"
    other.write_text(DEFINITIONS.replace("MILES_PER_MIN = 8.0", "MILES_PER_MIN = 8.5"))
    server = place.serve(tmp_path / "home", definitions=other, budget_us=5_000_000)
    try:
        with server.stub() as stub:
            index = {each.name: each for each in stub.RepositoryIndex(pb.RepositoryIndexRequest()).models}
            assert index["flights"].state == "UNAVAILABLE"
            assert "planned@1" in index["flights"].reason
            assert "MILES_PER_MIN" in index["flights"].reason
            assert index["routes"].state == "READY", index["routes"].reason
            assert rows(stub.ModelInfer(leg(b"N4"))) == [[4.0]]
            assert refusal(lambda: stub.ModelInfer(flight(b"N1")))[0] == "NOT_FOUND"
        text = server.http("/metrics")[1]
        assert 'podium_feature_contract_ok{model="flights",version="1"} 0.0' in text
        assert 'podium_feature_contract_ok{model="routes",version="1"} 1.0' in text
    finally:
        server.stop()


def test_a_server_without_definitions_serves_no_version_that_was_trained_with_them(place: Place, tmp_path: Path) -> None:
    server = Serving(place.repository, tmp_path, data_plane=place.plane)
    try:
        with server.stub() as stub:
            for version in stub.RepositoryIndex(pb.RepositoryIndexRequest()).models:
                assert version.state == "UNAVAILABLE"
                assert "definitions" in version.reason
        assert "podium_feature_" not in server.http("/metrics")[1].replace("podium_feature_seconds", "")
    finally:
        server.stop()
