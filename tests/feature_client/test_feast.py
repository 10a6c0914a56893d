"""Rows that Feast 0.67.0 wrote (`bench/feast_side.py fixture`), read from a real server with the statuses they deserve."""

import math
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_client.breaker import Breaker, State
from feature_client.definitions import definitions_of
from feature_client.errors import DefinitionError, EntityError
from feature_client.feast import FeastReader, hmget_commands
from feature_client.feast_rows import unpack_feast
from feature_client.feast_view import FeastView, feast_keys, feast_view
from feature_client.feature_set import FeatureSet
from feature_client.fingerprint import fingerprint
from feature_client.murmur import murmur3_32
from feature_client.schema import DEFAULTED, US_PER_S, Array, Feature, Status, hours
from feature_client.served import serve
from tests.feature_client.feast_store import FIXTURE, feast_server
from tests.feature_client.servers import Server, cluster, talker, tcp_server

BUDGET_S = 10.0
NEWEST_US = FIXTURE["given"]["driver_stats"]["event_timestamp"][0]
SCALARS = {"rating": "float32", "balance": "float64", "trips": "int64", "level": "int32", "active": "bool", "seen": "int64"}
LISTS = {"taste": ("float32", 3), "past": ("float64", 2), "hours": ("int64", 2), "ranks": ("int32", 2), "flags": ("bool", 2)}
TEXTS = ("city", "token")
FEATURES = (
    *(Feature(name, dtype, False if dtype == "bool" else 9) for name, dtype in SCALARS.items()),
    *(Feature(name, dtype, False if dtype == "bool" else 9, (count,)) for name, (dtype, count) in LISTS.items()),
    *(Feature(name, "bytes", b"?") for name in TEXTS),
)
DRIVER = feast_view(
    "driver_stats", entity="driver", keys={"driver_id": "int64"}, features=FEATURES, max_age_us=hours(24), on_stale="default"
)
ROUTE = feast_view(
    "route",
    feast_name="route_stats",
    entity="route",
    keys={"origin": "string", "gate": "int32"},
    features=[Feature("route_delay", "float32", 0.0)],
    feast_features={"route_delay": "delay"},
)


def objects(*values: bytes) -> Array:
    column = np.empty(len(values), object)
    column[:] = values
    return column


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with feast_server(tmp_path_factory.mktemp("feast")) as running:
        yield running


@pytest.fixture(scope="module")
def reader(server: Server) -> Iterator[FeastReader]:
    made = FeastReader(server.url, FIXTURE["project"])
    yield made
    made.close()


def went_in(name: str, row: int) -> Any:
    value = FIXTURE["given"]["driver_stats"][name][row]
    if name == "seen" and value is not None:
        return value // US_PER_S
    if name == "city" and value is not None:
        return value.encode()
    return bytes.fromhex(value) if name == "token" and value is not None else value


def same_bits(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, bytes):
        return bool(ours == theirs)
    return bool(np.asarray(theirs).astype(ours.dtype).tobytes() == ours.tobytes())


def test_the_values_are_those_that_went_in(reader: FeastReader) -> None:
    ids = np.array(FIXTURE["given"]["driver_stats"]["driver_id"])
    found = reader.read(DRIVER, {"driver_id": ids}, BUDGET_S)
    assert found.row_status.tolist() == [Status.PRESENT] * 3
    assert found.event_us.tolist() == FIXTURE["given"]["driver_stats"]["event_timestamp"]
    for index, feature in enumerate(FEATURES):
        for row in range(3):
            wanted = went_in(feature.name, row)
            # Feast writes a NaN as no value
            none = wanted is None or (feature.name == "rating" and row == 2)
            assert found.nulls[row, index] == none, (feature.name, row)
            if not none:
                assert same_bits(found.values[feature.name][row], wanted), (feature.name, row)


def test_the_values_are_those_that_feasts_client_gives(reader: FeastReader) -> None:
    told = FIXTURE["feast"]["driver_stats"]
    found = reader.read(DRIVER, {"driver_id": np.array([row["driver_id"] for row in told["rows"]])}, BUDGET_S)
    compared = 0
    for index, feature in enumerate(FEATURES):
        for row, theirs in enumerate(told["values"][feature.name]):
            if theirs is None:
                assert found.row_status[row] == Status.NOT_FOUND or found.nulls[row, index]
                continue
            compared += 1
            theirs = theirs // US_PER_S if feature.name == "seen" else theirs
            theirs = theirs.encode() if feature.name == "city" else bytes.fromhex(theirs) if feature.name == "token" else theirs
            assert same_bits(found.values[feature.name][row], theirs)
    assert compared == 2 * len(FEATURES) - 1
    # its client says PRESENT of every one of them
    assert {status for statuses in told["statuses"].values() for status in statuses} == {1}


def served(reader: FeastReader, view: FeastView, keys: Mapping[str, Array], now_us: int = NEWEST_US) -> Mapping[str, list[int]]:
    given = serve(view, reader.read(view, keys, BUDGET_S), now_us)
    return {name: given.statuses[:, index].tolist() for index, name in enumerate(view.names)}


def test_null_missing_and_stale_are_told_apart(reader: FeastReader) -> None:
    """Where Feast's own client says PRESENT: no value, no row, and a row that is older than it may be."""
    statuses = served(reader, DRIVER, {"driver_id": np.array([1001, -7, 2**40, 5])})
    stale, gone = Status.STALE | DEFAULTED, Status.NOT_FOUND | DEFAULTED
    for name, column in statuses.items():
        # the second row is 30 hours old
        assert column[1:] == [stale, Status.NULL | DEFAULTED if name == "rating" else Status.PRESENT, gone]
        assert column[0] == Status.PRESENT
    fresh = served(reader, DRIVER, {"driver_id": np.array([-7])}, now_us=NEWEST_US - hours(20))
    assert {status for column in fresh.values() for status in column} == {Status.NULL | DEFAULTED}


def test_keys_of_several_parts_and_of_narrow_integers(reader: FeastReader) -> None:
    keys = {"gate": np.array([3, -1, 3], np.int16), "origin": objects(b"JFK", b"ZRH", b"ZRH")}
    found = reader.read(ROUTE, keys, BUDGET_S)
    assert found.row_status.tolist() == [Status.PRESENT, Status.PRESENT, Status.NOT_FOUND]
    assert found.values["route_delay"][:2].tolist() == [12.5, -3.0]


def test_every_key_is_feasts(server: Server) -> None:
    ids = np.array(FIXTURE["given"]["driver_stats"]["driver_id"])
    ours = feast_keys("shop", DRIVER, {"driver_id": ids})
    routes = feast_keys("shop", ROUTE, {"gate": np.array([3, -1]), "origin": objects(b"JFK", b"ZRH")})
    assert {key.hex() for key in (*ours, *routes)} == set(FIXTURE["stored"])


def test_a_value_that_no_row_holds_yet_is_not_found(server: Server, reader: FeastReader) -> None:
    """A feature that was added to a view after a row was written: a field that is not there is no null."""
    wider = feast_view(
        "driver_stats",
        entity="driver",
        keys={"driver_id": "int64"},
        features=[Feature("rating", "float32", 0.0), Feature("new", "float32", 1.0)],
    )
    statuses = served(reader, wider, {"driver_id": np.array([1001, 5])})
    assert statuses == {"rating": [0, 4 | DEFAULTED], "new": [4 | DEFAULTED, 4 | DEFAULTED]}


def test_a_view_of_feasts_stands_beside_others(reader: FeastReader) -> None:
    """It goes through the same assembly, and its fingerprint tells what Feast calls it; computed it has no rows."""
    features = FeatureSet([DRIVER, ROUTE])
    assert set(definitions_of([DRIVER, ROUTE]).fingerprints) == {"driver_stats@1", "route@1"}
    assert DRIVER.compute({})["taste"].shape == (0, 3)
    others = [
        feast_view(
            "v", entity="e", keys={"id": kind}, features=[Feature("x", "bool", False)], feast_name=known, feast_features=names
        )
        for kind, known, names in (("int64", "", {}), ("int32", "", {}), ("int64", "w", {}), ("int64", "", {"x": "y"}))
    ]
    assert len({fingerprint(view) for view in others}) == 4
    assert features.keys == {"driver_id": "int64", "origin": "bytes", "gate": "int64"}
    keys = {"driver_id": np.array([1001]), "gate": np.array([3]), "origin": objects(b"JFK")}
    stored = {view.ref: serve(view, reader.read(view, keys, BUDGET_S), NEWEST_US) for view in (DRIVER, ROUTE)}
    made = features.assemble(1, {}, {}, stored)
    assert made.values["rating"].tolist() == [4.75]
    assert made.values["route_delay"].tolist() == [12.5]


def test_whoever_can_wait_for_ever_may(reader: FeastReader) -> None:
    assert reader.read(DRIVER, {"driver_id": np.array([1001])}, math.inf).row_status.tolist() == [Status.PRESENT]


def test_no_entities_are_no_rows(reader: FeastReader) -> None:
    assert len(reader.read(DRIVER, {"driver_id": np.array([], np.int64)}, BUDGET_S).row_status) == 0


# what follows needs no server: bytes of which Feast would write some and others never


def varint(number: int) -> bytes:
    number %= 1 << 64
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*made, number))


def delimited(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def single(dtype: str, shape: tuple[int, ...] = ()) -> FeastView:
    default: Any = {"bytes": b"", "bool": False}.get(dtype, 0)
    return feast_view("v", entity="e", keys={"id": "int64"}, features=[Feature("x", dtype, default, shape)])


def unpacked(dtype: str, cell: bytes | None, shape: tuple[int, ...] = (), time: bytes | None = b"\x08\x01") -> tuple[int, Any]:
    # another row beside it: one bad row never harms its neighbours
    found = unpack_feast(single(dtype, shape), [[b"", b"\x08\x02"], [cell, time]])
    assert found.row_status[0] == Status.PRESENT
    assert found.nulls[0, 0]
    return int(found.row_status[1]), None if found.nulls[1, 0] else found.values["x"][1]


def as_feast_writes(dtype: str, value: Any, number: int) -> bytes:
    """The one encoding of a scalar in a field of that number."""
    if dtype == "float32":
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if dtype == "float64":
        return varint(number << 3 | 1) + struct.pack("<d", value)
    return delimited(number, value) if dtype == "bytes" else varint(number << 3) + varint(int(value))


NUMBERS = {"float32": (6,), "float64": (5,), "int32": (3,), "int64": (4, 8), "bool": (7,), "bytes": (1, 2)}
LIST_NUMBERS = {"float32": 16, "float64": 15, "int32": 13, "int64": 14, "bool": 17}


def packed(dtype: str, values: list[Any]) -> bytes:
    if dtype in ("float32", "float64"):
        content = struct.pack(f"<{len(values)}{'f' if dtype == 'float32' else 'd'}", *values)
    else:
        content = b"".join(varint(int(value)) for value in values)
    return delimited(LIST_NUMBERS[dtype], delimited(1, content))


@given(st.sampled_from(sorted(NUMBERS)), st.binary(max_size=24))
def test_bytes_are_taken_only_for_what_feast_would_write_so(dtype: str, cell: bytes) -> None:
    status, value = unpacked(dtype, cell)
    if value is None:  # no value, the null of Feast's own, a NaN, or no such time
        known = cell in (b"", b"\x98\x01\x00") or (dtype.startswith("float") and status == Status.PRESENT)
        assert known or status == Status.FP_MISMATCH or cell == b"@" + varint(-(2**63))
        return
    assert (status == Status.PRESENT) == any(cell == as_feast_writes(dtype, value, each) for each in NUMBERS[dtype])


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float32", [0.0, -0.0, 1.5, float("inf"), 1e-45]),
        ("float64", [0.0, -1e300, 5e-324]),
        ("int32", [0, 1, -1, 127, 128, 2**31 - 1, -(2**31)]),
        ("int64", [0, -1, 2**63 - 1, -(2**63)]),
        ("bool", [True, False]),
        ("bytes", [b"", b"x" * 300, bytes(range(256))]),
    ],
)
def test_scalars_and_what_is_not_quite_one(dtype: str, values: list[Any]) -> None:
    for value in values:
        cell = as_feast_writes(dtype, value, NUMBERS[dtype][0])
        status, got = unpacked(dtype, cell)
        assert status == Status.PRESENT
        assert same_bits(got, value)
        for wrong in (*(cell[:cut] for cut in range(1, len(cell))), cell + b"\0", cell + cell):
            assert unpacked(dtype, wrong)[0] == Status.FP_MISMATCH
        for other in set(NUMBERS) - {dtype}:
            assert unpacked(other, cell)[0] == Status.FP_MISMATCH


@pytest.mark.parametrize("dtype", sorted(LIST_NUMBERS))
def test_lists_have_the_declared_length(dtype: str) -> None:
    values: list[Any] = [True, False, True] if dtype == "bool" else [1, 0, 100] if dtype.startswith("f") else [1, -300, 5]
    cell = packed(dtype, values)
    status, got = unpacked(dtype, cell, (3,))
    assert status == Status.PRESENT
    assert same_bits(got, values)
    for wrong in (*(cell[:cut] for cut in range(1, len(cell))), cell + b"\0", packed(dtype, [*values, 0]), packed(dtype, [])):
        assert unpacked(dtype, wrong, (3,))[0] == Status.FP_MISMATCH
    assert unpacked(dtype, cell)[0] == Status.FP_MISMATCH
    assert unpacked(dtype, cell, (2,))[0] == Status.FP_MISMATCH
    # a list within which there is no field but an empty one
    assert unpacked(dtype, delimited(LIST_NUMBERS[dtype], b""), (3,))[0] == Status.FP_MISMATCH


def test_numbers_that_the_type_cannot_hold_are_not_narrowed() -> None:
    assert unpacked("int32", b"\x18" + varint(2**31))[0] == Status.FP_MISMATCH
    assert unpacked("bool", b"\x38\x02")[0] == Status.FP_MISMATCH
    assert unpacked("int64", b"\x20" + b"\xff" * 9 + b"\x02")[0] == Status.FP_MISMATCH
    assert unpacked("int64", b"\x20\x80\x00")[0] == Status.FP_MISMATCH  # a longer way to write 0
    assert unpacked("bytes", b"\x12\x81\x00x")[0] == Status.FP_MISMATCH
    assert unpacked("bytes", b"\x12" + b"\x80" * 12)[0] == Status.FP_MISMATCH
    assert unpacked("int32", packed("int32", [1, 2**31]), (2,))[0] == Status.FP_MISMATCH
    assert unpacked("int32", b"\x6a\x04\x0a\x02\x80\x80", (1,))[0] == Status.FP_MISMATCH


def test_what_says_that_there_is_no_value() -> None:
    for dtype in NUMBERS:
        assert unpacked(dtype, b"") == (Status.PRESENT, None)
        assert unpacked(dtype, b"\x98\x01\x00") == (Status.PRESENT, None)
    assert unpacked("float32", as_feast_writes("float32", float("nan"), 6)) == (Status.PRESENT, None)
    # pandas' NaT
    assert unpacked("int64", b"@" + varint(-(2**63))) == (Status.PRESENT, None)


@pytest.mark.parametrize(
    ("time", "micros"),
    [
        (b"", 0),
        (b"\x08\x01", US_PER_S),
        (b"\x08\x01\x10\xe7\x07", US_PER_S),
        (b"\x10" + varint(999_999_999), US_PER_S - 1),
        (b"\x08" + varint(-1), -US_PER_S),
    ],
)
def test_times(time: bytes, micros: int) -> None:
    found = unpack_feast(single("bool"), [[b"\x38\x01", time]])
    assert (found.row_status.tolist(), found.event_us.tolist()) == ([Status.PRESENT], [micros])


@pytest.mark.parametrize(
    "time", [None, b"\x08", b"\x18\x01", b"\x08\x80", b"\x10" + varint(10**9), b"\x08" + varint(10**15), b"\x0a\x00", b"\xff"]
)
def test_a_row_whose_age_nobody_knows_is_not_served(time: bytes | None) -> None:
    assert unpacked("bool", b"\x38\x01", time=time)[0] == Status.FP_MISMATCH


def test_a_row_is_missing_only_if_its_time_is() -> None:
    assert unpacked("bool", None, time=None)[0] == Status.NOT_FOUND
    assert unpacked("bool", None)[0] == Status.PRESENT


@pytest.mark.parametrize(
    ("text", "wanted"), [(b"", 0), (b"a", 0x3C2569B2), (b"hello", 0x248BFA47), (b"hello, world", 0x149BBB7F)]
)
def test_murmur(text: bytes, wanted: int) -> None:
    assert murmur3_32(text) == wanted


def test_the_names_of_fields_are_feasts() -> None:
    stored = {name for fields in FIXTURE["stored"].values() for name in fields}
    assert {field.hex() for field in (*DRIVER.fields, *ROUTE.fields)} <= stored


def test_views_that_cannot_be() -> None:
    plain = {"entity": "e", "keys": {"id": "int64"}}
    with pytest.raises(DefinitionError, match="type 'float'"):
        feast_view("v", entity="e", keys={"id": "float"}, features=[Feature("x", "bool", False)])
    for feature in (Feature("x", "float16", 0), Feature("x", "float32", 0, (2, 2))):
        with pytest.raises(DefinitionError, match="Feast has"):
            feast_view("v", features=[feature], **plain)  # type: ignore[arg-type]  # of two kinds
    two = [Feature("x", "bool", False), Feature("y", "bool", False)]
    with pytest.raises(DefinitionError, match="under one name"):
        feast_view("v", features=two, feast_features={"y": "x"}, **plain)  # type: ignore[arg-type]  # of two kinds


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"origin": objects(b"JFK")}, "'gate' is missing"),
        ({"origin": objects(b"JFK"), "gate": np.zeros((1, 1), np.int64)}, "'gate' is missing"),
        ({"origin": objects(b"JFK"), "gate": np.array([1.0])}, "integers that int32"),
        ({"origin": objects(b"JFK"), "gate": np.array([2**31])}, "integers that int32"),
        ({"origin": np.array(["JFK"], object), "gate": np.array([1])}, "must be bytes"),
        ({"origin": objects(b"JFK"), "gate": np.array([1, 2])}, "equally many"),
        ({"origin": objects(b"J" * 600), "gate": np.array([1])}, "longer than"),
    ],
)
def test_keys_that_cannot_be(keys: Mapping[str, Array], said: str) -> None:
    with pytest.raises(EntityError, match=said):
        feast_keys("shop", ROUTE, keys)


def test_one_request_has_every_entity() -> None:
    assert hmget_commands([b"a"], [b"f"]) == b"*3\r\n$5\r\nHMGET\r\n$1\r\na\r\n$1\r\nf\r\n"


def test_what_lies_there_and_is_no_hash_is_never_a_value(server: Server, reader: FeastReader) -> None:
    keys = {"driver_id": np.array([77, 1001])}
    server.admin.set(feast_keys("shop", DRIVER, keys)[0], b"something else")
    assert reader.read(DRIVER, keys, BUDGET_S).row_status.tolist() == [Status.FP_MISMATCH, Status.PRESENT]


def test_a_server_that_is_gone_or_hangs_costs_statuses_within_the_budget(tmp_path: Path) -> None:
    keys = {"driver_id": np.array([1001, 5])}
    with tcp_server(tmp_path) as server:
        reader = FeastReader(server.url, "shop", Breaker(consecutive=10_000, part=2.0))
        assert reader.read(DRIVER, keys, BUDGET_S).row_status.tolist() == [Status.NOT_FOUND] * 2
        server.freeze()
        begun_s = time.monotonic()
        for _ in range(5):
            assert reader.read(DRIVER, keys, 0.02).row_status.tolist() == [Status.TIMEOUT] * 2
        assert time.monotonic() - begun_s < 5
        server.thaw()
        server.kill()
        assert reader.read(DRIVER, keys, 0.5).row_status.tolist() == [Status.TIMEOUT] * 2
        assert reader.read(DRIVER, keys, 0.0).row_status.tolist() == [Status.TIMEOUT] * 2
        server.start()
        until = time.monotonic() + BUDGET_S
        while reader.read(DRIVER, keys, 0.5).row_status[0] == Status.TIMEOUT:
            assert time.monotonic() < until
        reader.close()


def test_a_store_that_keeps_failing_is_left_alone() -> None:
    reader = FeastReader("redis://127.0.0.1:1", "shop")
    keys = {"driver_id": np.array([1])}
    for _ in range(6):
        assert reader.read(DRIVER, keys, 0.5).row_status.tolist() == [Status.TIMEOUT]
    begun_s = time.monotonic()
    for _ in range(100):
        reader.read(DRIVER, keys, 0.5)
    assert time.monotonic() - begun_s < 5
    reader.close()


def test_one_impatient_caller_does_not_take_the_store_away_from_others() -> None:
    breaker = Breaker()
    reader = FeastReader("redis://127.0.0.1:1", "shop", breaker)
    for budget_s, state in ((1e-6, State.CLOSED), (0.5, State.OPEN)):
        for _ in range(5):
            assert reader.read(DRIVER, {"driver_id": np.array([1])}, budget_s).row_status.tolist() == [Status.TIMEOUT]
        assert breaker.state is state
    reader.close()


def test_what_answers_otherwise_than_a_hash_does_is_never_a_value() -> None:
    with talker(b"+OK\r\n", b"+OK\r\n", b"*1\r\n$1\r\na\r\n") as url:
        reader = FeastReader(url, "shop")
        assert reader.read(DRIVER, {"driver_id": np.array([1])}, BUDGET_S).row_status.tolist() == [Status.FP_MISMATCH]
        reader.close()


def test_a_cluster_has_each_hash_where_it_belongs(tmp_path: Path) -> None:
    with cluster(tmp_path, 2) as nodes:
        for key, fields in FIXTURE["stored"].items():
            owner = nodes.owner(bytes.fromhex(key))
            owner.admin.hset(
                bytes.fromhex(key), mapping={bytes.fromhex(name): bytes.fromhex(value) for name, value in fields.items()}
            )
        reader = FeastReader(nodes.url, "shop")
        ids = {"driver_id": np.array([*FIXTURE["given"]["driver_stats"]["driver_id"], 5])}
        assert reader.read(DRIVER, ids, BUDGET_S).row_status.tolist() == [Status.PRESENT] * 3 + [Status.NOT_FOUND]
        for server in nodes.servers:
            server.kill()
        assert reader.read(DRIVER, ids, 0.5).row_status.tolist() == [Status.TIMEOUT] * 4
        reader.close()
        reader = FeastReader(nodes.url, "shop")
        assert reader.read(DRIVER, ids, 0.5).row_status.tolist() == [Status.TIMEOUT] * 4
        reader.close()
