"""A real cluster of three servers: one round trip per node, a node that is gone, slots that move."""

import os
import time
from collections.abc import Iterator

import pytest
from redis.crc import key_slot

from feature_client.errors import StoreError, StorePartial, StoreTimeout
from feature_client.redis_cluster import ranges
from feature_client.redis_store import RedisStore
from tests.feature_client.heart import budget
from tests.feature_client.rows_for_stores import keys_of, row
from tests.feature_client.servers import Cluster, Server, cluster, free_port, tcp_server

KEYS = keys_of("cluster", 300)
ROWS = [row(number, 0, f"of {number}".encode() * 10) for number in range(300)]
WRITTEN = list(zip(KEYS, ROWS, strict=True))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


@pytest.fixture
def nodes(running: Cluster) -> Cluster:
    running.await_agreement()
    for server in running.servers:
        server.admin.flushall()
    return running


@pytest.fixture
def store(nodes: Cluster) -> Iterator[RedisStore]:
    opened = RedisStore(nodes.url, connect_timeout_s=2)
    opened.write(WRITTEN, 0)
    yield opened
    opened.close()


def owned_by(nodes: Cluster, server: Server) -> list[int]:
    """Positions of the keys that a server has."""
    mine = [(first, last) for first, last, port in nodes.slots() if port == server.port]
    return [index for index, key in enumerate(KEYS) if any(first <= key_slot(key) <= last for first, last in mine)]


def test_keys_are_spread_and_read_in_order(nodes: Cluster, store: RedisStore) -> None:
    assert all(server.admin.dbsize() > 50 for server in nodes.servers)
    assert store.read(KEYS[::-1], 5) == ROWS[::-1]
    views = [KEYS[7], KEYS[7].replace(b"v@1", b"w@1")]
    store.write([(views[1], row(1))], 0)
    assert store.read(views, 5) == [ROWS[7], row(1)]
    assert nodes.owner(views[0]) is nodes.owner(views[1])


def test_one_connection_per_node_and_one_mget_per_slot(nodes: Cluster, store: RedisStore) -> None:
    assert store.read(KEYS, 5) == ROWS
    before = [server.connections() for server in nodes.servers]
    for server in nodes.servers:
        server.admin.config_resetstat()
    for _ in range(10):
        assert store.read(KEYS, 5) == ROWS
    asked = sum(server.admin.info("commandstats")["cmdstat_mget"]["calls"] for server in nodes.servers)
    assert asked == 10 * len({key_slot(key) for key in KEYS})
    assert len(before) == 3
    assert all(server.connections() == 1 or server.connections() == 0 for server in nodes.servers), "none since the reset"


def test_a_moved_slot_is_found_again(nodes: Cluster, store: RedisStore) -> None:
    key = KEYS[11]
    source = nodes.owner(key)
    target = next(server for server in nodes.servers if server is not source)
    nodes.move(key_slot(key), target)
    with pytest.raises(StorePartial, match=r"1 of 300 keys: .*MOVED.*the slot has moved") as caught:
        store.read(KEYS, 5)
    assert caught.value.unanswered == (11,)
    assert caught.value.rows == [None if index == 11 else known for index, known in enumerate(ROWS)]
    until = time.monotonic() + 10
    while True:
        try:
            assert store.read(KEYS, 5) == ROWS
            break
        except StoreError:
            assert time.monotonic() < until, "the slot is not found again"
            time.sleep(0.01)
    assert store.write([(key, row(1000))], 0) == 1
    nodes.move(key_slot(key), source)
    with pytest.raises(StoreError, match="MOVED"):
        store.write([(key, row(1001))], 0)
    with pytest.raises(StoreError, match="MOVED"):
        RedisStore(f"redis://127.0.0.1:{target.port}").claim_text(key.decode(), "t")


def test_a_frozen_node_costs_its_own_keys_and_the_budget(nodes: Cluster, store: RedisStore) -> None:
    assert store.read(KEYS, 5) == ROWS
    frozen = nodes.servers[1]
    lost = owned_by(nodes, frozen)
    before = frozen.connections()
    frozen.freeze()
    try:
        for _ in range(8):
            with budget(0.03), pytest.raises(StorePartial, match="did not answer in time") as caught:
                store.read(KEYS, 0.03)
            assert list(caught.value.unanswered) == lost
            with pytest.raises(StoreTimeout):
                store.read([KEYS[index] for index in lost[:3]], 0.01)
        others = [index for index in range(300) if index not in lost]
        assert store.read([KEYS[index] for index in others], 5) == [ROWS[index] for index in others]
        store.ping(5)
    finally:
        frozen.thaw()
    until = time.monotonic() + 5
    while True:
        try:
            assert store.read(KEYS, 5) == ROWS
            break
        except StoreError:
            assert time.monotonic() < until, "the node is not read again"
    assert frozen.connections() - before < 20


def test_a_child_has_connections_of_its_own(store: RedisStore) -> None:
    assert store.read(KEYS, 5) == ROWS
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if all(store.read(KEYS[turn:], 5) == ROWS[turn:] for turn in range(20)) else 1)
        finally:
            os._exit(2)
    for turn in range(60):
        assert store.read(KEYS[turn:], 5) == ROWS[turn:]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_dead_node_costs_its_own_keys_only(nodes: Cluster, store: RedisStore) -> None:
    assert store.read(KEYS, 5) == ROWS
    dead = nodes.servers[2]
    lost = owned_by(nodes, dead)
    dead.kill()
    for _ in range(30):
        with pytest.raises(StorePartial) as caught:
            store.read(KEYS, 2)
        assert list(caught.value.unanswered) == lost
        assert caught.value.rows == [None if index in lost else known for index, known in enumerate(ROWS)]
    with pytest.raises(StoreError):
        store.write([(KEYS[lost[0]], row(1))], 0)
    store.ping(5)
    dead.start()
    until = time.monotonic() + 20
    while True:
        try:
            found = store.read(KEYS, 2)
            break
        except StoreError:
            assert time.monotonic() < until, "the node is not read again"
            time.sleep(0.02)
    assert found == [None if index in lost else known for index, known in enumerate(ROWS)]
    store.close()
    with pytest.raises(StoreError, match="has been closed"):
        store.read(KEYS, 1)


def test_a_cluster_that_is_not_there_or_none(tmp_path_factory: pytest.TempPathFactory) -> None:
    with tcp_server(tmp_path_factory.mktemp("single")) as server:
        store = RedisStore(server.url.replace("redis://", "redis+cluster://").removesuffix("/0"), connect_timeout_s=2)
        with pytest.raises(StoreError, match="cluster support disabled"):
            store.read(KEYS, 5)
        server.freeze()
        with pytest.raises(StoreError):
            store.read(KEYS, 0.01)
        server.kill()
        with pytest.raises(StoreError):
            store.ping(0.1)
        store.close()


def test_nodes_without_slots_are_no_cluster_yet(tmp_path_factory: pytest.TempPathFactory) -> None:
    with tcp_server(tmp_path_factory.mktemp("alone"), "--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        store = RedisStore(server.url.replace("redis://", "redis+cluster://").removesuffix("/0"), connect_timeout_s=2)
        with pytest.raises(StoreError, match="knows of no slots"):
            store.read(KEYS, 5)
        for refusing in (store.ping, lambda _: store.write(WRITTEN, 0), lambda _: store.claim_text("a", "t")):
            with pytest.raises(StoreError):
                refusing(1)
        server.command("CLUSTER", "ADDSLOTSRANGE", 0, 99)
        until = time.monotonic() + 10
        while True:
            try:
                store.ping(1)
                break
            except StoreError:
                assert time.monotonic() < until
                time.sleep(0.02)
        for refused in (lambda: store.read(KEYS, 1), lambda: store.write(WRITTEN, 0), lambda: store.claim_text("a", "t")):
            with pytest.raises(StoreError):
                refused()
        store.close()


def test_slots_as_nodes_tell_them() -> None:
    told = [
        [0, 99, [b"10.0.0.1", 7000, b"id", []], [b"10.0.0.9", 7009, b"replica"]],
        [100, 199, [b"", 7001, b"id"]],
        [200, 299, [None, 7002, b"id"]],
        [300, 399, [b"?", 7003, b"id"]],
        [400, 99999, [b"10.0.0.1", 7000, b"id"]],
    ]
    assert ranges(told, "asked") == [(0, 99, "10.0.0.1", 7000), (100, 199, "asked", 7001), (200, 299, "asked", 7002)]
