"""A real server in trouble: frozen, gone, restarted, slow, emptied. Budgets hold, values are right, no storm of reconnects."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_client.errors import StoreError, StoreTimeout
from feature_client.redis_store import RedisStore
from tests.feature_client.heart import SLACK_S, budget
from tests.feature_client.proxy import Proxy
from tests.feature_client.rows_for_stores import keys_of, row
from tests.feature_client.servers import Server, free_port, tcp_server

BUDGET_S = 0.02
KEYS = keys_of("fault", 40)
ROWS = [row(number, 0, f"of {number}".encode() * 20) for number in range(40)]
WRITTEN = list(zip(KEYS, ROWS, strict=True))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with tcp_server(tmp_path) as running:
        yield running


@pytest.fixture
def store(server: Server) -> Iterator[RedisStore]:
    opened = RedisStore(server.url, connect_timeout_s=2)
    opened.write(WRITTEN, 0)
    assert opened.read(KEYS, 5) == ROWS
    yield opened
    opened.close()


def ask(store: RedisStore, first: int, budget_s: float = BUDGET_S) -> str:
    """Read a few keys that no neighbouring call reads: what became of it. Never beyond its budget, never another's rows."""
    wanted = [(first + offset) % len(KEYS) for offset in range(3)]
    with budget(budget_s):
        try:
            found = store.read([KEYS[index] for index in wanted], budget_s)
        except StoreTimeout:
            return "timeout"
        except StoreError:
            return "error"
    assert found == [ROWS[index] for index in wanted]
    return "right"


def await_right(store: RedisStore, within_s: float = 1.0) -> None:
    """Calls are answered again soon."""
    until = time.monotonic() + within_s + SLACK_S
    while ask(store, 7) != "right":
        assert time.monotonic() < until, "the store does not come alive again"
        time.sleep(0.01)


def test_a_frozen_server_costs_each_call_its_budget_and_no_connection(server: Server, store: RedisStore) -> None:
    before = server.connections()
    server.freeze()
    try:
        outcomes = {ask(store, turn) for turn in range(25)}
    finally:
        server.thaw()
    assert outcomes == {"timeout"}
    await_right(store)
    assert [ask(store, turn, 5) for turn in range(40)] == ["right"] * 40
    assert server.connections() - before <= 4


def test_many_threads_meet_a_frozen_server(server: Server, store: RedisStore) -> None:
    before = server.connections()
    outcomes: list[str] = []

    def work(first: int) -> None:
        outcomes.extend(ask(store, first + turn) for turn in range(10))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(12)]
    server.freeze()
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        server.thaw()
    assert outcomes == ["timeout"] * 120
    await_right(store)
    assert server.connections() - before <= 4


def test_more_than_the_sockets_hold_is_sent_to_a_frozen_server(server: Server, store: RedisStore) -> None:
    """A command that is cut in the middle of its sending is finished later, or the connection could never be used again."""
    long_keys = [bytes([number % 256]) * 200_000 for number in range(60)]
    before = server.connections()
    server.freeze()
    try:
        for _ in range(8):
            with pytest.raises(StoreTimeout):
                store.read(long_keys, BUDGET_S)
    finally:
        server.thaw()
    await_right(store, 5)
    assert store.read(long_keys, 10) == [None] * 60
    assert server.connections() - before <= 4


def test_a_write_to_a_frozen_server_fails_in_its_time_and_the_next_one_succeeds(server: Server) -> None:
    store = RedisStore(server.url, write_timeout_s=0.5)
    store.write([(KEYS[0], row(1))], 0)
    before = server.connections()
    server.freeze()
    with pytest.raises(StoreTimeout):
        store.write([(KEYS[0], row(2))], 0)
    server.thaw()
    assert store.write([(KEYS[0], row(3))], 0) == 1
    assert store.read(KEYS[:1], 5) == [row(3)]
    assert server.connections() - before == 1, "the one that reads"
    store.close()


def test_a_closed_port_is_refused_at_once_and_taken_when_it_opens(tmp_path: Path) -> None:
    with tcp_server(tmp_path) as server:
        server.kill()
        store = RedisStore(server.url)
        assert "right" not in {ask(store, turn) for turn in range(20)}
        assert ask(store, 0, 5) == "error", "refused, not waited for"
        with pytest.raises(StoreError, match=r"127\.0\.0\.1:\d+/0 cannot be reached: .*refused"):
            store.ping(1)
        with pytest.raises(StoreError, match="cannot be reached"):
            store.write(WRITTEN, 0)
        server.start()
        server.admin.mset(dict(WRITTEN))
        await_right(store)
        store.close()


def test_a_machine_that_drops_everything_costs_no_more_than_the_budget() -> None:
    store = RedisStore("redis://192.0.2.1:6379/0")  # RFC 5737: an address that nobody has
    for turn in range(3):
        assert ask(store, turn) in ("timeout", "error")
    store.close()


def test_a_server_that_is_killed_and_started_again_is_back_within_a_second(server: Server, store: RedisStore) -> None:
    for _ in range(2):
        threads = [threading.Thread(target=store.read, args=(KEYS, 5)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        server.kill()
        assert "right" not in {ask(store, turn) for turn in range(10)}
        server.start()
        server.admin.mset(dict(WRITTEN))
        await_right(store)
        assert store.write(WRITTEN, 0) == 40, "the script is unknown to a server that is new"


def test_late_replies_reach_nobody_and_cost_no_connection(server: Server) -> None:
    """One reply in five comes 50 ms late, to callers that wait 20 ms: the same ones a moment later read what is theirs."""
    with Proxy(server.port) as proxy:
        store = RedisStore(server.url.replace(str(server.port), str(proxy.port)), connect_timeout_s=2)
        store.write(WRITTEN, 0)
        store.read(KEYS, 5)
        proxy.delay_s = lambda piece: 0.05 if piece % 5 == 0 else 0.0
        outcomes = [ask(store, turn * 3) for turn in range(150)]
        lock = threading.Lock()

        def work(first: int) -> None:
            for turn in range(40):
                outcome = ask(store, first + turn * 3)
                with lock:
                    outcomes.append(outcome)

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        proxy.delay_s = lambda piece: 0.0
        await_right(store)
        assert "error" not in outcomes
        assert outcomes.count("timeout") > 10
        assert outcomes.count("right") > len(outcomes) / 4
        assert proxy.accepted <= 4 + 1, "four to read, one to write"
        store.close()


def test_a_reply_that_drips_ends_with_the_budget_and_leaves_the_connection_good(server: Server) -> None:
    """Each piece comes in time, all of them together do not: no single wait may be given the whole budget again."""
    with Proxy(server.port) as proxy:
        store = RedisStore(server.url.replace(str(server.port), str(proxy.port)), connections=1, connect_timeout_s=2)
        store.write(WRITTEN, 0)
        store.ping(5)
        proxy.piece_bytes = 64
        store.ping(5)  # the relay is waiting for a piece of the old size
        proxy.delay_s = lambda piece: 0.002
        with budget(0.03), pytest.raises(StoreTimeout):
            store.read(KEYS, 0.03)
        proxy.piece_bytes = 1 << 16
        proxy.delay_s = lambda piece: 0.0
        await_right(store, 5)
        assert proxy.accepted == 2
        store.close()


def test_one_silent_connection_is_given_up_when_others_are_answered(server: Server) -> None:
    with Proxy(server.port) as proxy:
        store = RedisStore(server.url.replace(str(server.port), str(proxy.port)), connections=2, connect_timeout_s=2)
        store.write(WRITTEN, 0)
        store.ping(5)
        silent_piece = proxy.pieces + 1
        proxy.delay_s = lambda piece: 3600.0 if piece == silent_piece else 0.0
        assert ask(store, 0) == "timeout"
        until = time.monotonic() + 10
        while proxy.accepted < 4:
            threads = [threading.Thread(target=store.read, args=(KEYS, 5)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert time.monotonic() < until, "the silent connection keeps its place"
            time.sleep(0.05)
        store.close()


def test_an_emptied_store_has_no_rows_and_takes_new_ones(server: Server, store: RedisStore) -> None:
    server.admin.flushall()
    assert store.read(KEYS, 5) == [None] * 40
    server.admin.script_flush()
    assert store.write(WRITTEN, 0) == 40
    assert store.read(KEYS, 5) == ROWS


def test_a_child_reads_by_connections_of_its_own_and_leaves_the_parents_alone(server: Server, store: RedisStore) -> None:
    """Two processes on one connection would read each other's replies."""
    lent = store._places.nodes(0)[0].reading.take(time.monotonic() + 5)
    child = os.fork()
    if child == 0:
        try:
            right = all(ask(store, turn, 20) == "right" for turn in range(5, 50)) and store.write(WRITTEN, 0) == 40
            store._places.nodes(0)[0].reading.put(lent)
            store.close()
            os._exit(0 if right and lent.closed else 1)
        finally:
            os._exit(2)
    for turn in range(300):
        assert ask(store, turn, 20) == "right"
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store._places.nodes(0)[0].reading.put(lent)
    assert not lent.closed
    for turn in range(10):
        assert ask(store, turn, 20) == "right"


def test_what_answers_is_no_redis(tmp_path: Path) -> None:
    port = free_port()
    with Proxy(port) as proxy:  # to a port that nobody listens on: accepts, and closes at once
        store = RedisStore(f"redis://127.0.0.1:{proxy.port}/0", connect_timeout_s=2)
        with pytest.raises(StoreError, match="cannot be reached"):
            store.read(KEYS, 5)
        store.close()


def test_a_closed_store_says_so(store: RedisStore) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="has been closed"):
        store.read(KEYS, 1)
    with pytest.raises(StoreError, match="has been closed"):
        store.write(WRITTEN, 0)


@pytest.mark.parametrize("budget_s", [0.0, -1.0])
def test_without_time_left_nothing_is_asked(store: RedisStore, budget_s: float) -> None:
    with pytest.raises(StoreTimeout):
        store.read(KEYS, budget_s)
