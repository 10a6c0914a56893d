"""Every kind of store does the same: in memory, over TCP, over a local socket, over TLS with a user, in a cluster."""

import itertools
import math
import threading
from collections.abc import Iterator

import pytest

from feature_client.embedded import start_embedded
from feature_client.errors import StoreError
from feature_client.memory_store import MemoryStore
from feature_client.redis_store import RedisStore
from feature_client.store import Store
from tests.feature_client.rows_for_stores import keys_of, row
from tests.feature_client.servers import cluster, guarded_server, tcp_server, tls_front

BUDGET_S = 20.0
"""Far more than any store needs: these tests are about answers, not about budgets."""
KINDS = ("memory", "tcp", "unix", "tls", "cluster")
_numbers = itertools.count()


@pytest.fixture(scope="module", params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("store")
    opened: Store
    if request.param == "memory":
        opened = MemoryStore()
        yield opened
    elif request.param == "tcp":
        with tcp_server(folder) as server:
            yield (opened := RedisStore(server.url))
            opened.close()
    elif request.param == "unix":
        with start_embedded() as embedded:
            yield (opened := RedisStore(embedded.url))
            opened.close()
    elif request.param == "tls":
        with guarded_server(folder) as server, tls_front(server, folder) as (url, _):
            yield (opened := RedisStore(url, connect_timeout_s=5))
            opened.close()
    else:
        with cluster(folder) as nodes:
            yield (opened := RedisStore(nodes.url))
            opened.close()


@pytest.fixture
def keys() -> list[bytes]:
    """Keys that no other test uses."""
    return keys_of(f"t{next(_numbers)}", 20)


def test_what_was_written_is_read_in_order_and_the_rest_is_none(store: Store, keys: list[bytes]) -> None:
    rows = [row(number, number, f"body {number}".encode()) for number in range(10)]
    assert store.write(list(zip(keys[:10], rows, strict=True)), 60) == 10
    assert store.read(keys, BUDGET_S) == [*rows, *[None] * 10]
    assert store.read(keys[::-1], BUDGET_S) == [*[None] * 10, *rows[::-1]]
    assert store.read([keys[3], keys[3], keys[15]], BUDGET_S) == [rows[3], rows[3], None]


def test_whoever_can_wait_for_ever_may(store: Store, keys: list[bytes]) -> None:
    assert store.read(keys, math.inf) == [None] * len(keys)
    store.ping(math.inf)


def test_nothing_is_nothing(store: Store) -> None:
    assert store.read([], BUDGET_S) == []
    assert store.write([], 60) == 0


def test_the_newest_wins_by_event_then_by_availability(store: Store, keys: list[bytes]) -> None:
    held = row(100, 50, b"held")
    for number, (other, wins) in enumerate(
        [
            (row(99, 90, b"earlier event, known later"), False),
            (row(100, 49, b"same event, known earlier"), False),
            (row(100, 50, b"same instants"), True),
            (row(100, 51, b"same event, known later"), True),
            (row(101, 0, b"later event, known earlier"), True),
            (row(-1, 99, b"before 1970"), False),
        ]
    ):
        assert store.write([(keys[number], held)], 60) == 1
        assert store.write([(keys[number], other)], 60) == wins, other
        assert store.read([keys[number]], BUDGET_S) == [other if wins else held]


def test_instants_are_compared_to_the_last_bit(store: Store) -> None:
    """A double, which is what a script computes with, could not tell these apart."""
    ascending = [-(2**63), -(2**63) + 1, -(2**53) - 1, -(2**53), -(2**32), -1, 0, 2**32 - 1, 2**32, 2**53, 2**53 + 1, 2**63 - 1]
    fresh = iter(keys_of("instants", 2 * len(ascending)))
    for earlier, later in itertools.pairwise(ascending):
        for low, high in ((row(earlier), row(later)), (row(7, earlier), row(7, later))):
            key = next(fresh)
            assert store.write([(key, low)], 60) == 1
            assert store.write([(key, high)], 60) == 1, (earlier, later)
            assert store.write([(key, low)], 60) == 0, (earlier, later)
            assert store.read([key], BUDGET_S) == [high]


def test_a_key_twice_in_one_write_ends_with_the_newest(store: Store, keys: list[bytes]) -> None:
    assert store.write([(keys[0], row(5)), (keys[0], row(9)), (keys[0], row(7))], 60) == 2
    assert store.read(keys[:1], BUDGET_S) == [row(9)]


def test_foreign_bytes_are_replaced(store: Store, keys: list[bytes]) -> None:
    store.claim_text(keys[0].decode(), "short")
    assert store.write([(keys[0], row(3))], 60) == 1
    assert store.read(keys[:1], BUDGET_S) == [row(3)]


def test_bytes_too_short_to_be_a_row_are_refused_before_anything_is_written(store: Store, keys: list[bytes]) -> None:
    with pytest.raises(StoreError, match="5 bytes cannot be a row"):
        store.write([(keys[0], row(1)), (keys[1], b"short")], 60)
    assert store.read(keys[:2], BUDGET_S) == [None, None]


def test_keys_and_rows_are_any_bytes(store: Store) -> None:
    odd = [bytes(range(256)), b"\r\n$5\r\nhello", b"{}", b"{", b"}{a}", "é{ü}".encode(), b"\x00", b"{same}a", b"{same}b"]
    rows = [row(number, 0, key * 3) for number, key in enumerate(odd)]
    assert store.write(list(zip(odd, rows, strict=True)), 60) == len(odd)
    assert store.read(odd, BUDGET_S) == rows


def test_two_thousand_keys_in_one_call(store: Store) -> None:
    many = keys_of("many", 2000)
    rows = [row(number, 0, number.to_bytes(4, "little") * 54) for number in range(2000)]
    assert store.write(list(zip(many, rows, strict=True)), 60) == 2000
    assert store.read(many, BUDGET_S) == rows
    assert store.read(many[::2] + keys_of("absent", 500), BUDGET_S) == rows[::2] + [None] * 500


def test_huge_rows_and_long_keys(store: Store) -> None:
    huge = [(f"{{h{number}}}".encode() * 4000, row(number, 0, bytes([number]) * 3_000_000)) for number in range(3)]
    assert store.write(huge, 60) == 3
    assert store.read([key for key, _ in huge], BUDGET_S) == [body for _, body in huge]


def test_rows_in_memory_expire_and_are_then_written_like_new_ones(keys: list[bytes]) -> None:
    now_s = 1000.0
    store = MemoryStore(lambda: now_s)
    assert store.write([(key, row(9)) for key in keys[:2]], 100) == 2
    assert store.write([(keys[2], row(9))], 0) == 1
    now_s += 100
    assert store.read(keys[:3], 1) == [row(9)] * 3
    now_s += 10.1
    assert store.read(keys[:3], 1) == [None, None, row(9)]
    assert store.write([(key, row(3)) for key in keys[:3]], 100) == 2, "0 is never"
    store.close()


def test_memory_lets_go_of_expired_rows_that_nobody_reads() -> None:
    now_s = 1000.0
    store = MemoryStore(lambda: now_s)
    store.write([(key, row(9)) for key in keys_of("old", 3000)], 1)
    now_s += 2
    store.write([(key, row(9)) for key in keys_of("new", 3000)], 1)
    assert len(store._rows) == 3000


def test_a_text_belongs_to_who_claims_it_first(store: Store) -> None:
    assert store.claim_text("f1:test:claim", "größer") == "größer"
    assert store.claim_text("f1:test:claim", "other") == "größer"
    assert store.claim_text("f1:test:claim", "größer") == "größer"


def test_it_answers_and_has_a_name(store: Store) -> None:
    store.ping(BUDGET_S)
    assert store.name
    assert "s3cret" not in store.name
    assert "%73" not in store.name


def test_many_threads_read_and_write(store: Store) -> None:
    """More threads than connections, each with keys of its own: every row read is the one written under its key."""
    wrong: list[str] = []

    def work(number: int) -> None:
        mine = keys_of(f"thread{number}", 30)
        for turn in range(15):
            rows = [row(turn, index, f"{number} {turn} {index}".encode()) for index in range(30)]
            if store.write(list(zip(mine, rows, strict=True)), 60) != 30 or store.read(mine, BUDGET_S) != rows:
                wrong.append(f"thread {number}, turn {turn}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_writers_that_race_leave_the_newest(store: Store, keys: list[bytes]) -> None:
    def work(first: int) -> None:
        for instant in range(first, 200, 4):
            store.write([(key, row(instant)) for key in keys], 60)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read(keys, BUDGET_S) == [row(199)] * 20
