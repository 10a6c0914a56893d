"""What Feast's own interpreter runs: fills a Redis store as Feast does, and measures Feast's client. Imports nothing of ours.

`feast_side.py fixture HOST:PORT` materialises three small views and prints them as JSON: what went in, the bytes in the store,
and what Feast's client gives. `feast_side.py serve HOST:PORT` writes a view of 50 float32 features when told to, then reads
one line of JSON after the other, and answers each with a line.
"""

# mypy: disable-error-code="import-untyped,import-not-found"

import json
import sys
import tempfile
import time
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import redis
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp

PROJECT = "shop"
EPOCH = datetime(2024, 5, 1, 12, 30, 15, 250_001, tzinfo=UTC)
WIDE = 50


def feast_store(address: str, folder: str) -> FeatureStore:
    """A Feast repository in a folder, its online store the Redis at an address."""
    return FeatureStore(
        config=RepoConfig(
            project=PROJECT,
            registry=f"{folder}/registry.db",
            provider="local",
            online_store={"type": "redis", "connection_string": address},
            offline_store={"type": "file"},
            entity_key_serialization_version=3,
        )
    )


def tables() -> dict[str, pa.Table]:
    """What goes in, by view. A None is no value; a NaN is one."""
    nan = float("nan")
    times = pa.array([EPOCH - timedelta(hours=hours) for hours in (0, 30, 1)], pa.timestamp("us", tz="UTC"))
    driver = {
        "driver_id": pa.array([1001, -7, 2**40], pa.int64()),
        "event_timestamp": times,
        "rating": pa.array([4.75, None, nan], pa.float32()),
        "balance": pa.array([-0.0, None, 1e300], pa.float64()),
        "trips": pa.array([0, None, -(2**63)], pa.int64()),
        "level": pa.array([-5, None, 2**31 - 1], pa.int32()),
        "active": pa.array([False, None, True], pa.bool_()),
        "city": pa.array(["Zürich", None, ""], pa.string()),
        "token": pa.array([b"\x00\xff", None, b""], pa.binary()),
        "seen": pa.array([EPOCH.replace(microsecond=0), None, datetime(1999, 1, 1, tzinfo=UTC)], pa.timestamp("us", tz="UTC")),
        "taste": pa.array([[0.5, -1.5, nan], None, [1.0, 2.0, 3.0]], pa.list_(pa.float32())),
        "past": pa.array([[0.1, 0.2], None, [-0.0, 1e-300]], pa.list_(pa.float64())),
        "hours": pa.array([[1, -1], None, [0, 2**62]], pa.list_(pa.int64())),
        "ranks": pa.array([[7, -7], None, [0, 1]], pa.list_(pa.int32())),
        "flags": pa.array([[True, False], None, [False, True]], pa.list_(pa.bool_())),
    }
    route = {
        "origin": pa.array(["JFK", "ZRH"], pa.string()),
        "gate": pa.array([3, -1], pa.int32()),
        "event_timestamp": times[:2],
        "delay": pa.array([12.5, -3.0], pa.float32()),
    }
    extra = {"driver_id": driver["driver_id"][:1], "event_timestamp": times[:1], "bonus": pa.array([7.0], pa.float64())}
    return {"driver_stats": pa.table(driver), "route_stats": pa.table(route), "driver_extra": pa.table(extra)}


def fixture(address: str) -> dict[str, Any]:
    """Materialise, and tell everything."""
    given = tables()
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
    gate = Entity(name="gate", join_keys=["gate"], value_type=ValueType.INT32)
    types = {"rating": Float32, "balance": Float64, "trips": Int64, "level": Int32, "active": Bool, "city": String}
    types |= {"token": Bytes, "seen": UnixTimestamp, "taste": Array(Float32), "past": Array(Float64)}
    types |= {"hours": Array(Int64), "ranks": Array(Int32), "flags": Array(Bool)}
    schemas: dict[str, Any] = {
        "driver_stats": ([driver], {"driver_id": Int64, **types}),
        "route_stats": ([origin, gate], {"origin": String, "gate": Int32, "delay": Float32}),
        "driver_extra": ([driver], {"driver_id": Int64, "bonus": Float64}),
    }
    answers = {}
    with tempfile.TemporaryDirectory() as folder:
        store = feast_store(address, folder)
        views = []
        for name, (entities, schema) in schemas.items():
            pq.write_table(given[name], f"{folder}/{name}.parquet")
            source = FileSource(path=f"{folder}/{name}.parquet", timestamp_field="event_timestamp")
            fields = [Field(name=each, dtype=dtype) for each, dtype in schema.items()]
            views.append(FeatureView(name=name, entities=entities, schema=fields, source=source, ttl=timedelta(hours=24)))
        store.apply([driver, origin, gate, *views])
        store.materialize(EPOCH - timedelta(days=3), EPOCH + timedelta(days=1))
        asked: dict[str, Any] = {
            "driver_stats": [{"driver_id": each} for each in (1001, -7, 2**40, 5)],
            "route_stats": [{"origin": "JFK", "gate": 3}, {"origin": "ZRH", "gate": -1}, {"origin": "ZRH", "gate": 3}],
            "driver_extra": [{"driver_id": each} for each in (1001, -7)],
        }
        for name, rows in asked.items():
            features = [f"{name}:{each}" for each in given[name].column_names[len(rows[0]) + 1 :]]
            answer = store.get_online_features(features=features, entity_rows=rows)
            statuses = {
                feature: [int(each) for each in answer.proto.results[index].statuses]
                for index, feature in enumerate(answer.proto.metadata.feature_names.val)
            }
            answers[name] = {"rows": rows, "values": answer.to_dict(), "statuses": statuses}
    host, port = address.split(":")
    client: Any = redis.Redis(host, int(port))
    stored = {
        key.hex(): {bytes(field).hex(): bytes(value).hex() for field, value in sorted(client.hgetall(key).items())}
        for key in sorted(map(bytes, client.scan_iter()))
    }
    return {"project": PROJECT, "given": {k: v.to_pydict() for k, v in given.items()}, "stored": stored, "feast": answers}


def plain(value: Any) -> Any:
    """For JSON: instants as microseconds, bytes as hexadecimal digits."""
    if isinstance(value, datetime):
        return (value - datetime(1970, 1, 1, tzinfo=value.tzinfo)) // timedelta(microseconds=1)
    return bytes(value).hex()


class Wide:
    """A view of 50 float32 features, in the store and measured."""

    def __init__(self, address: str, folder: str) -> None:
        self.store = feast_store(address, folder)
        entity = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
        self.names = [f"f{index:03}" for index in range(WIDE)]
        fields = [Field(name="driver_id", dtype=Int64), *(Field(name=name, dtype=Float32) for name in self.names)]
        path = Path(folder) / "empty.parquet"
        columns = {name: pa.array([], pa.float32()) for name in self.names}
        columns["driver_id"] = pa.array([], pa.int64())
        pq.write_table(pa.table({**columns, "event_timestamp": pa.array([], pa.timestamp("us", tz="UTC"))}), path)
        source = FileSource(path=str(path), timestamp_field="event_timestamp")
        self.view = FeatureView(name="wide", entities=[entity], schema=fields, source=source, ttl=timedelta(days=365))
        self.store.apply([entity, self.view])
        self.features = [f"wide:{name}" for name in self.names]

    def write(self, entities: int, row: list[float]) -> int:
        """Entities 0 … n-1, feature k of entity i the k-th of `row` plus i, as float32."""
        for start in range(0, entities, 1000):
            some = range(start, min(start + 1000, entities))
            frame = pd.DataFrame(
                {name: [row[at] + each for each in some] for at, name in enumerate(self.names)}, dtype="float32"
            )
            frame["driver_id"] = pd.Series(some, dtype="int64")
            frame["event_timestamp"] = datetime.now(UTC)
            self.store.write_to_online_store("wide", frame)
        return entities

    def measure(self, batches: list[list[int]]) -> list[float]:
        """Milliseconds per call of Feast's client, one call per batch of entities."""
        taken = []
        for batch in batches:
            rows = [{"driver_id": each} for each in batch]
            begin = time.perf_counter()
            self.store.get_online_features(features=self.features, entity_rows=rows)
            taken.append((time.perf_counter() - begin) * 1e3)
        return taken

    def values(self, batch: list[int]) -> list[list[float]]:
        """What Feast's client gives, a row per entity: to be compared with what ours gives."""
        rows = [{"driver_id": each} for each in batch]
        given = self.store.get_online_features(features=self.features, entity_rows=rows).to_dict()
        return [[given[name][at] for name in self.names] for at in range(len(batch))]


def serve(address: str) -> None:
    """One line in, one line out, until the input ends."""
    with tempfile.TemporaryDirectory() as folder:
        wide = Wide(address, folder)
        for line in sys.stdin:
            verb, *arguments = json.loads(line)
            verbs: dict[str, Any] = {"write": wide.write, "measure": wide.measure, "values": wide.values}
            answer = verbs[verb](*arguments)
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


def main(verb: str, address: str) -> None:
    """See the module."""
    if verb == "fixture":
        with redirect_stdout(sys.stderr):  # Feast reports its progress there
            told = fixture(address)
        json.dump(told, sys.stdout, default=plain)
    else:
        serve(address)


if __name__ == "__main__":
    main(*sys.argv[1:])
