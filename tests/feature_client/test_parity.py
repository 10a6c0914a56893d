"""What a store holds at every instant is what the training set finds, to the bit; and what is not so is found."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from feature_client.embedded import EmbeddedServer, start_embedded
from feature_client.errors import EventError
from feature_client.fingerprint import fingerprint, stamp_of
from feature_client.memory_store import MemoryStore
from feature_client.parity import assert_parity
from feature_client.row import pack, unpack
from feature_client.schema import Array
from feature_client.store import Key, Row
from feature_client.view import View
from tests.feature_client.views import aircraft, bytes_column, flights, planned, route

AIRPORTS = (b"JFK", b"LGA", "ZRÜ".encode(), b"a|b:{c}")
KEYS = {
    "aircraft@2": {"tail": np.arange(-2, 6)},
    "route@1": {
        "origin": bytes_column(*(airport for airport in AIRPORTS for _ in AIRPORTS)),
        "destination": bytes_column(*(airport for _ in AIRPORTS for airport in AIRPORTS)),
    },
}


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with start_embedded() as running:
        yield running


CHILD = """
import sys
from feature_client.parity import assert_parity
from feature_client.redis_store import RedisStore
from tests.feature_client.test_parity import KEYS
from tests.feature_client.views import aircraft, flights, route

store = RedisStore(sys.argv[1])
for batch, count in ((1, 50), (256, 1200)):
    for view in (aircraft, route):
        for seed in (0, 1):
            project = f"p{sys.argv[2]}-{batch}-{seed}"
            events = flights(count, seed=int(sys.argv[2]) * 2 + seed, tails=6)
            print(view.ref, batch, assert_parity(view, events, KEYS[view.ref], store, batch=batch, project=project))
"""


def test_a_real_store_holds_what_the_builder_finds(server: EmbeddedServer) -> None:
    """Late and repeated events, in three processes whose hashes differ, pushed and read one by one and 256 at a time."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, server.url, seed],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        for seed in ("0", "1", "2")
    ]
    for child in children:
        output, _ = child.communicate(timeout=100)
        assert child.returncode == 0
        lines = [line.split() for line in output.splitlines()]
        assert [(ref, batch) for ref, batch, _ in lines] == [
            (ref, batch) for batch in ("1", "256") for ref in ("aircraft@2", "route@1") for _ in range(2)
        ]
        assert all(int(count) >= 40 for _, _, count in lines)
        assert sum(int(count) for _, _, count in lines) > 2000


@pytest.mark.parametrize("view", [aircraft, route])
@pytest.mark.parametrize("batch", [1, 5, 64, 10_000])
def test_batches_of_any_size(view: View, batch: int) -> None:
    assert assert_parity(view, flights(200, seed=batch), KEYS[view.ref], MemoryStore(), batch=batch) > 0


def of_the_batch(flights: Array, delay: Array) -> Mapping[str, Array]:
    """What a definition must not do: a value that depends on which rows are computed together."""
    return {"route_flights": flights, "route_delay": delay - np.nan_to_num(delay).sum()}


def test_a_function_that_looks_at_other_rows_is_found() -> None:
    with pytest.raises(AssertionError, match=r"'route@1' at \d+, origin=.*: route_delay is .* in the store, .* by the builder"):
        assert_parity(replace(route, function=of_the_batch), flights(200), KEYS["route@1"], MemoryStore())


class TamperingStore(MemoryStore):
    """Changes one value by one unit in the last place, and makes the row look whole."""

    def write(self, rows: Sequence[tuple[Key, Row]], expire_s: int) -> int:
        stamp = stamp_of(fingerprint(route))
        changed = []
        for key, row in rows:
            found = unpack(route, stamp, [row])
            found.values["route_delay"] = np.nextafter(found.values["route_delay"], np.inf)
            packed = pack(route, stamp, found.values, found.nulls, found.event_us, found.available_us)
            changed.append((key, packed[0]))
        return super().write(changed, expire_s)


def test_a_row_that_was_changed_is_found() -> None:
    with pytest.raises(AssertionError, match="route_delay is"):
        assert_parity(route, flights(200), KEYS["route@1"], TamperingStore())


class DamagingStore(MemoryStore):
    """Flips a bit of every row."""

    def write(self, rows: Sequence[tuple[Key, Row]], expire_s: int) -> int:
        damaged = [(key, row[:-1] + bytes([row[-1] ^ 1])) for key, row in rows]
        return super().write(damaged, expire_s)


def test_a_row_that_was_damaged_is_found() -> None:
    with pytest.raises(AssertionError, match="row_status is 6 in the store, 0 by the builder"):
        assert_parity(route, flights(200), KEYS["route@1"], DamagingStore())


def test_only_stored_views_have_a_history() -> None:
    with pytest.raises(EventError, match="no stored view"):
        assert_parity(planned, {}, KEYS["route@1"], MemoryStore())
    assert assert_parity(route, flights(0), KEYS["route@1"], MemoryStore()) == 0
