"""A filled store is the one that pushing would have left; an interrupted fill goes on; newer rows stay."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from feature_client.checkpoint import Checkpoint
from feature_client.embedded import EmbeddedServer, start_embedded
from feature_client.errors import ContractError, EventError, StoreError
from feature_client.fingerprint import fingerprint, stamp_of
from feature_client.keys import row_keys
from feature_client.materialize import Filled, materialize
from feature_client.memory_store import MemoryStore
from feature_client.point_in_time import find, history_of
from feature_client.redis_store import RedisStore
from feature_client.row import unpack
from feature_client.schema import Array, Columns, Status
from feature_client.store import Key, Row, Store
from feature_client.stream import Push, key_columns
from feature_client.view import View
from tests.feature_client.views import aircraft, bytes_column, flights, planned, route

STORED = (aircraft, route)
PRINTS = {view.ref: fingerprint(view) for view in STORED}
END_US = 1_800_000_000_000_000


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with start_embedded() as running:
        yield running


class CountingStore(MemoryStore):
    """Fails at a chosen write, and remembers how long rows were to be kept."""

    def __init__(self, fail_at: int = -1) -> None:
        super().__init__()
        self.fail_at = fail_at
        self.writes = 0
        self.expiries: set[int] = set()

    def write(self, rows: Sequence[tuple[Key, Row]], expire_s: int) -> int:
        self.writes += 1
        self.expiries.add(expire_s)
        if self.writes - 1 == self.fail_at:
            raise StoreError("gone")
        return super().write(rows, expire_s)


def entities_of(view: View, events: Columns) -> Columns:
    assert view.entity is not None
    entities = set(zip(*(events[key].tolist() for key in view.entity.keys), strict=True))
    return key_columns(view, sorted(each for each in entities if None not in each))


def assert_filled(store: Store, view: View, events: Columns, at_us: int = END_US, project: str = "t") -> None:
    keys = entities_of(view, events)
    held = unpack(view, stamp_of(PRINTS[view.ref]), store.read(row_keys(project, view, keys), 5.0))
    built = find(history_of(view, events), keys, np.full(len(held.row_status), at_us))
    assert held.row_status.tolist() == built.row_status.tolist()
    assert held.available_us.tolist() == built.available_us.tolist()
    there = held.row_status == Status.PRESENT
    assert there.any()
    for name in view.names:
        ours, theirs = held.values[name][there], built.values[name][there]
        assert ours.tolist() == theirs.tolist() if ours.dtype == object else ours.tobytes() == theirs.tobytes()


def many(count: int, tails: int) -> dict[str, Array]:
    return flights(count, tails=tails) | {"flight_id": np.arange(count)}


def test_a_filled_store_is_what_the_training_set_finds(server: EmbeddedServer) -> None:
    store = RedisStore(server.url)
    events = many(2000, 300)
    events["origin"] = bytes_column(*(None if row % 7 == 0 else value for row, value in enumerate(events["origin"].tolist())))
    told: list[tuple[str, int, int]] = []
    filled = materialize(
        store,
        "t",
        STORED,
        PRINTS,
        {"flights": events},
        progress=lambda *each: told.append(each),
        batch_rows=100,
    )
    for view in STORED:
        assert_filled(store, view, events)
    counts = [len(next(iter(entities_of(view, events).values()))) for view in STORED]
    assert [(each.view, each.rows, each.skipped, each.kept) for each in filled] == [
        ("aircraft@2", counts[0], 0, 0),
        ("route@1", counts[1], 0, 0),
    ]
    assert told[:2] == [("aircraft@2", 0, counts[0]), ("aircraft@2", 100, counts[0])]
    assert told[-1] == ("route@1", counts[1], counts[1])
    assert all(each.rows_per_s > 0 for each in filled)
    store.close()


def test_as_of_an_instant() -> None:
    events = many(500, 40)
    at_us = int(np.median(events["event_us"]))
    store = MemoryStore()
    materialize(store, "t", [aircraft], PRINTS, {"flights": events}, until_us=at_us)
    assert_filled(store, aircraft, events, at_us)
    assert materialize(MemoryStore(), "t", [aircraft], PRINTS, {"flights": events}, until_us=0)[0].rows == 0


def test_what_is_pushed_while_a_view_is_filled_for_the_first_time_stays() -> None:
    """The fill read its log before the last events came; they are pushed before it comes to their entities."""
    events = many(500, 40)
    store = MemoryStore()
    early = {name: column[:250] for name, column in events.items()}

    def meanwhile(view: str, done: int, total: int) -> None:
        if done == 10:
            Push(store, "t", [aircraft], PRINTS, now_us=lambda: END_US).push("flights", events)

    (filled,) = materialize(store, "t", [aircraft], PRINTS, {"flights": early}, progress=meanwhile, batch_rows=10)
    assert filled.kept > 0
    assert_filled(store, aircraft, events)


def test_newer_rows_stay() -> None:
    events = many(500, 40)
    later = {name: column[250:] for name, column in events.items()}
    store = CountingStore()
    materialize(store, "t", [aircraft], PRINTS, {"flights": events})
    assert store.expiries == {2 * 30 * 86400}
    again = materialize(store, "t", [aircraft], PRINTS, {"flights": {n: column[:250] for n, column in events.items()}})
    assert 0 < again[0].kept <= again[0].rows
    assert_filled(store, aircraft, events)
    pushed = CountingStore()
    Push(pushed, "t", [aircraft], PRINTS, now_us=lambda: END_US).push("flights", later)
    materialize(pushed, "t", [aircraft], PRINTS, {"flights": events})
    assert_filled(pushed, aircraft, events)


def test_a_fill_that_failed_goes_on_where_it_was(tmp_path: Path) -> None:
    events, path = many(500, 40), tmp_path / "checkpoint"
    store = CountingStore(fail_at=3)
    with pytest.raises(StoreError):
        materialize(store, "t", STORED, PRINTS, {"flights": events}, checkpoint=path, batch_rows=10)
    assert path.exists()
    filled = materialize(store, "t", STORED, PRINTS, {"flights": events}, checkpoint=path, batch_rows=10)
    assert [each.skipped for each in filled] == [30, 0]
    assert not path.exists()
    for view in STORED:
        assert_filled(store, view, events)
    # when all is done, the same fill is another one
    assert [each.skipped for each in materialize(store, "t", STORED, PRINTS, {"flights": events}, checkpoint=path)] == [0, 0]


def test_a_store_that_lost_its_rows_is_filled_anew(tmp_path: Path) -> None:
    events, path = many(500, 40), tmp_path / "checkpoint"
    with pytest.raises(StoreError):
        materialize(CountingStore(fail_at=2), "t", [aircraft], PRINTS, {"flights": events}, checkpoint=path, batch_rows=10)
    store = CountingStore()
    assert materialize(store, "t", [aircraft], PRINTS, {"flights": events}, checkpoint=path)[0].skipped == 0
    assert_filled(store, aircraft, events)


def test_a_store_that_lost_its_rows_and_was_pushed_to_is_filled_anew(tmp_path: Path) -> None:
    """Who pushes after a FLUSHALL claims the view again: that the claim is there says nothing of the rows."""
    events, path = many(500, 40), tmp_path / "checkpoint"
    store = CountingStore(fail_at=2)
    with pytest.raises(StoreError):
        materialize(store, "t", [aircraft], PRINTS, {"flights": events}, checkpoint=path, batch_rows=10)
    emptied = MemoryStore()
    Push(emptied, "t", [aircraft], PRINTS, now_us=lambda: END_US)
    assert materialize(emptied, "t", [aircraft], PRINTS, {"flights": events}, checkpoint=path)[0].skipped == 0
    assert_filled(emptied, aircraft, events)


def test_only_the_same_fill_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    events, other = many(500, 40), many(500, 40)
    other["carrier"] = bytes_column(*other["carrier"][:-1].tolist(), b"XX")

    def skipped(events: Columns, until_us: int | None = None, project: str = "t") -> int:
        store = CountingStore(fail_at=2)
        with pytest.raises(StoreError):
            materialize(store, "t", [aircraft], PRINTS, {"flights": many(500, 40)}, checkpoint=path, batch_rows=10)
        store.fail_at = -1
        materialize(store, "u", [aircraft], PRINTS, {"flights": flights(0)})
        filled = materialize(
            store, project, [aircraft], PRINTS, {"flights": events}, until_us=until_us, checkpoint=path, batch_rows=10
        )
        return filled[0].skipped

    assert skipped(events) == 20
    assert skipped(other) == 0
    assert skipped(events, until_us=END_US) == 0
    assert skipped(events, project="u") == 0


CHILD = """
import sys, time
from pathlib import Path
from feature_client.materialize import materialize
from feature_client.redis_store import RedisStore
from tests.feature_client.test_materialize import PRINTS, STORED, many

def progress(view, done, total):
    if view == "route@1" and done:
        print(view, done, flush=True)
        time.sleep(60)

materialize(RedisStore(sys.argv[1]), "killed", STORED, PRINTS, {"flights": many(2000, 300)}, checkpoint=Path(sys.argv[2]),
            batch_rows=5, progress=progress)
"""


def test_a_fill_that_was_killed_goes_on(server: EmbeddedServer, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    child = subprocess.Popen([sys.executable, "-c", CHILD, server.url, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    line = child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert line.split() == ["route@1", "5"]
    store, events = RedisStore(server.url), many(2000, 300)
    filled = materialize(store, "killed", STORED, PRINTS, {"flights": events}, checkpoint=path)
    assert (filled[0].rows, filled[1].skipped) == (0, 5)
    for view in STORED:
        assert_filled(store, view, events, project="killed")
    store.close()


def test_what_cannot_be_filled(tmp_path: Path) -> None:
    store, events = MemoryStore(), {"flights": flights(20)}
    with pytest.raises(EventError, match="no events of 'flights' were given, which 'aircraft@2'"):
        materialize(store, "t", [aircraft], PRINTS, {})
    with pytest.raises(EventError, match="is not computed from events"):
        materialize(store, "t", [planned], {planned.ref: bytes(32)}, {})
    materialize(store, "t", [aircraft], PRINTS, events)
    with pytest.raises(ContractError):
        materialize(store, "t", [aircraft], {aircraft.ref: bytes(32)}, events)
    assert materialize(store, "t", [aircraft], PRINTS, {"flights": flights(0)})[0].rows == 0
    assert Filled("v@1", 5, 0, 0, 0.0).rows_per_s == 0.0


def test_a_checkpoint_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    for text in ("{", "[]", '{"a": -1}', '{"a": 1.5}', '{"a": true}'):
        path.write_text(text)
        with pytest.raises(StoreError, match="is no checkpoint; remove it"):
            Checkpoint(path)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        Checkpoint(folder)
    lost = Checkpoint(tmp_path / "none" / "checkpoint")
    with pytest.raises(StoreError, match="cannot be written"):
        lost.reached("a", 1)
    kept = Checkpoint(path.with_name("kept"))
    kept.reached("a", 1)
    assert Checkpoint(path.with_name("kept")).rows_done("a") == 1
    path.with_name("kept").unlink()
    path.with_name("kept").mkdir()
    with pytest.raises(StoreError, match="cannot be removed"):
        kept.remove()
