"""URLs, refusals and commands: what a store in Redis says and sends."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection

from feature_client.errors import StoreError
from feature_client.redis_address import parse_address
from feature_client.redis_channel import packed
from feature_client.redis_replies import code_of, refused
from feature_client.redis_store import KEY_BYTES_OF_A_READ, KEYS_OF_A_READ, RedisStore, parts_of
from feature_client.redis_writing import ROW_BYTES_OF_A_SCRIPT, ROWS_OF_A_SCRIPT, commands_of
from feature_client.row_times import row_times
from tests.feature_client.rows_for_stores import keys_of, row
from tests.feature_client.servers import Server, guarded_server, talker, tcp_server, tls_front


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with tcp_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.mark.parametrize(
    ("url", "name", "kind"),
    [
        ("redis://cache:6380/2", "redis://cache:6380/2", Connection),
        ("redis://cache", "redis://cache:6379/0", Connection),
        ("redis://", "redis://localhost:6379/0", Connection),
        ("redis://someone:s%3Acret@cache/1", "redis://cache:6379/1", Connection),
        ("redis://:secret@[::1]:7000?db=3", "redis://[::1]:7000/3", Connection),
        ("rediss://cache:1?ssl_cert_reqs=none&ssl_password=secret", "rediss://cache:1/0", SSLConnection),
        ("unix:///run/valkey.sock?db=2&password=secret", "unix:///run/valkey.sock", UnixDomainSocketConnection),
        ("redis+cluster://:secret@cache:1", "redis+cluster://cache:1", Connection),
        ("rediss+cluster://cache", "rediss+cluster://cache:6379", SSLConnection),
    ],
)
def test_urls(url: str, name: str, kind: type) -> None:
    address = parse_address(url)
    assert (address.name, address.kind, address.is_cluster) == (name, kind, "+cluster" in url)
    assert address.options["protocol"] == 2
    assert RedisStore(url).name == name


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("cache:6379", "starts with one of redis://"),
        ("http://cache", "starts with one of redis://"),
        ("redis://user:sec/ret@cache", "percent-encoded"),
        ("redis://cache:sec-ret", "percent-encoded"),
        ("redis://cache:99999", "percent-encoded"),
        ("redis://cache/sec-ret", "a number"),
        ("redis+cluster://cache/1", "0 of a cluster"),
        ("redis://cache?db=sec-ret", "percent-encoded"),
        ("redis://cache?socket_timeout=1&retries=3", "options that are not taken: retries, socket_timeout"),
        ("redis://cache?ssl_ca_certs=x", "are not what they must be"),
        ("rediss://cache?ssl_colour=x", "are not what they must be"),
        ("rediss://cache?ssl_cert_reqs=sec-ret", "are not what they must be"),
        ("unix://?db=1", "names no socket"),
    ],
)
def test_bad_urls_are_refused_without_being_repeated(url: str, says: str) -> None:
    with pytest.raises(StoreError, match=says) as caught:
        RedisStore(url)
    assert "ret" not in str(caught.value).replace("retries", "")


def test_another_node_of_a_cluster_is_reached_in_the_same_way() -> None:
    address = parse_address("rediss+cluster://user:secret@cache:1?ssl_cert_reqs=none")
    node = address.at("fd00::7", 6381)
    assert (node.name, node.host, node.port) == ("rediss://[fd00::7]:6381", "fd00::7", 6381)
    assert (node.options["password"], node.options["ssl_cert_reqs"]) == ("secret", "none")
    assert address.at("10.0.0.7", 1).name == "rediss://10.0.0.7:1"
    local = parse_address("unix:///run/valkey.sock")
    assert (local.host, local.port) == ("", 0)


@pytest.mark.parametrize(
    ("refusal", "cluster", "says"),
    [
        ("NOAUTH Authentication required.", False, "it wants a password"),
        ("NOPERM No permissions", False, "the user needs the rights"),
        ("LOADING Redis is loading", False, "still loading"),
        ("OOM command not allowed", False, "its memory is full"),
        ("READONLY You can't write", False, "it is a replica"),
        ("MOVED 1 a:2", False, "redis\\+cluster://"),
        ("MOVED 1 a:2", True, "the slot has moved"),
        ("CLUSTERDOWN Hash slot not served", True, "does not serve all slots"),
        ("ERR something else", False, "refused: ERR something else$"),
    ],
)
def test_refusals_say_what_to_do(refusal: str, cluster: bool, says: str) -> None:
    with pytest.raises(StoreError, match=says):
        raise refused("redis://a:1/0", refusal, cluster=cluster)
    assert code_of(refusal) == refusal.split()[0]


def test_a_read_is_cut_into_pieces_by_keys_and_by_bytes() -> None:
    keys = keys_of("k", 2000)
    assert [len(part) for part in parts_of(range(2000), keys)] == [KEYS_OF_A_READ] * 3 + [2000 - 3 * KEYS_OF_A_READ]
    assert list(parts_of(range(10), keys)) == [range(10)]
    half = b"x" * (KEY_BYTES_OF_A_READ // 2)
    assert list(parts_of([0, 2, 1, 3], [half, half, half, half + b"x"])) == [[0, 2], [1], [3]]
    beyond = b"x" * (KEY_BYTES_OF_A_READ + 1)
    assert list(parts_of([0, 1], [beyond, b"y"])) == [[0], [1]]


def test_scripts_are_cut_by_rows_and_by_bytes() -> None:
    short = [(key, row(1)) for key in keys_of("k", 2 * ROWS_OF_A_SCRIPT + 1)]
    commands = list(commands_of(short, [5] * len(short)))
    assert [command.words[2] for command in commands] == [ROWS_OF_A_SCRIPT, ROWS_OF_A_SCRIPT, 1]
    assert commands[2].words[3:] == (short[-1][0], short[-1][1], 5)
    assert commands[2].in_full.words[0] == "EVAL"
    assert commands[2].in_full.words[2:] == commands[2].words[2:]
    large = [(b"k", row(1, 0, bytes(ROW_BYTES_OF_A_SCRIPT)))] * 3
    assert len(list(commands_of(large, [0] * 3))) == 3
    assert list(commands_of([], [])) == []


def test_instants_are_read_from_the_header() -> None:
    assert row_times(row(-5, 2**63 - 1, b"rest")) == (-5, 2**63 - 1)
    with pytest.raises(StoreError, match="31 bytes cannot be a row"):
        row_times(bytes(31))


def test_commands_are_packed_as_the_protocol_has_them() -> None:
    assert packed(("GET", b"\x00"), ("PX", 7)) == b"*2\r\n$3\r\nGET\r\n$1\r\n\x00\r\n*2\r\n$2\r\nPX\r\n$1\r\n7\r\n"


def test_expiry_is_what_was_asked_and_up_to_a_tenth_more(server: Server) -> None:
    store = RedisStore(server.url)
    keys = keys_of("expiry", 200)
    store.write([(key, row(1)) for key in keys], 1000)
    left_ms = [server.admin.pttl(key) for key in keys]
    assert all(980_000 < left <= 1_100_000 for left in left_ms)
    assert len(set(left_ms)) > 100, "rows written together would all be forgotten in one instant"
    store.close()


def test_rows_expire_and_are_then_written_like_new_ones(server: Server) -> None:
    store = RedisStore(server.url)
    keys = keys_of("expired", 3)
    assert store.write([(key, row(9)) for key in keys[:2]], 1) == 2
    assert store.write([(keys[2], row(9))], 0) == 1
    assert store.read(keys, 5) == [row(9)] * 3
    until = time.monotonic() + 10
    while store.read(keys[:2], 5) != [None, None]:
        assert time.monotonic() < until, "rows do not expire"
        time.sleep(0.02)
    assert store.write([(key, row(3)) for key in keys], 60) == 2, "0 is never"
    store.close()


def test_the_wrong_password_is_told_from_none_and_neither_is_repeated(tmp_path: Path) -> None:
    with guarded_server(tmp_path) as guarded:
        for login, says in (("", "NOAUTH.*wants a password"), ("features:wr0ng@", "WRONGPASS.*is wrong")):
            store = RedisStore(f"redis://{login}127.0.0.1:{guarded.port}", connect_timeout_s=2)
            with pytest.raises(StoreError, match=says) as caught:
                store.read([b"k"], 5)
            assert "wr0ng" not in str(caught.value)
            store.close()
        store = RedisStore(guarded.url, connect_timeout_s=2)
        store.write([(b"k", row(1))], 0)
        guarded.admin.flushall()
        store.close()


def test_rights_that_are_missing_are_named(server: Server) -> None:
    server.command("ACL", "SETUSER", "reader", "on", ">pw", "~f1:*", "+mget")
    store = RedisStore(f"redis://reader:pw@127.0.0.1:{server.port}", connect_timeout_s=2)
    assert store.read([b"f1:absent"], 5) == [None]
    with pytest.raises(StoreError, match=r"NOPERM.*needs the rights"):
        store.read([b"other"], 5)
    with pytest.raises(StoreError, match="NOPERM"):
        store.write([(b"f1:k", row(1))], 0)
    assert store.read([b"f1:absent"], 5) == [None]
    store.close()


def test_a_certificate_that_nobody_vouches_for_is_refused(server: Server, tmp_path: Path) -> None:
    with tls_front(server, tmp_path) as (url, _):
        distrustful = RedisStore(url.partition("?")[0], connect_timeout_s=2)
        with pytest.raises(StoreError, match=r"cannot be reached: .*certificate verify failed"):
            distrustful.read([b"k"], 5)
        distrustful.close()
        lost = RedisStore(url + ".absent", connect_timeout_s=2)
        with pytest.raises(StoreError, match=r"cannot be reached: .*No such file"):
            lost.read([b"k"], 5)
        lost.close()
        plain = RedisStore(url.replace("rediss://", "redis://").partition("?")[0], connect_timeout_s=2)
        with pytest.raises(StoreError):
            plain.read([b"k"], 3)
        plain.close()


def test_a_full_server_and_a_replica_refuse_rows_and_say_why(server: Server) -> None:
    store = RedisStore(server.url)
    for settings, says in (({"maxmemory": 1}, "OOM.*memory is full"), ({"maxmemory": 0}, "")):
        for name, value in settings.items():
            server.admin.config_set(name, value)
        if says:
            with pytest.raises(StoreError, match=says):
                store.write([(b"full", row(1))], 0)
    server.command("REPLICAOF", "127.0.0.1", 1)
    with pytest.raises(StoreError, match=r"READONLY.*replica"):
        store.write([(b"replica", row(1))], 0)
    server.command("REPLICAOF", "NO", "ONE")
    assert store.write([(b"again", row(1))], 0) == 1
    store.close()


def test_other_types_under_a_key_are_no_rows(server: Server) -> None:
    store = RedisStore(server.url)
    server.admin.rpush("list", "x")
    server.admin.set("bytes", b"\xff\xfe")
    assert store.read([b"list"], 5) == [None]
    with pytest.raises(StoreError, match="WRONGTYPE"):
        store.write([(b"list", row(1))], 0)
    with pytest.raises(StoreError, match="WRONGTYPE"):
        store.claim_text("list", "t")
    with pytest.raises(StoreError, match="something else than a text"):
        store.claim_text("bytes", "t")
    store.close()


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), "cannot be reached: Protocol error"),
        ((b"+OK\r\n", b"+OK\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"), "does not speak the protocol of Redis"),
        ((b"+OK\r\n", b"+OK\r\n", b"+OK\r\n"), "answered otherwise than a store of rows does"),
        ((b"+OK\r\n", b"+OK\r\n", b"*1\r\n$-1\r\n"), "answered otherwise than a store of rows does"),
        ((b"+OK\r\n", b"+OK\r\n", b"*2\r\n$-1\r\n"), "was lost: the server closed it"),
    ],
)
def test_what_is_no_redis_is_recognised(answers: tuple[bytes, ...], says: str) -> None:
    with talker(*answers) as url:
        store = RedisStore(url, connect_timeout_s=2)
        with pytest.raises(StoreError, match=says):
            store.read([b"a", b"b"], 5)
        store.close()


def test_what_nobody_asked_for_is_nobodys_answer() -> None:
    """It came together with an answer, so nothing was to be seen of it on the socket when the next question was asked."""
    with talker(b"+OK\r\n", b"+OK\r\n", b"*1\r\n$1\r\na\r\n*1\r\n$5\r\nother\r\n", b"") as url:
        store = RedisStore(url, connect_timeout_s=2)
        assert [store.read([b"k"], 5) for _ in range(3)] == [[b"a"]] * 3
        store.close()


def test_a_connection_starts_with_nothing_that_a_server_could_refuse(server: Server) -> None:
    server.admin.config_resetstat()
    store = RedisStore(server.url)
    store.read([b"k"], 5)
    store.close()
    sent = set(server.admin.info("commandstats"))
    assert "cmdstat_hello" not in sent
    assert sent <= {"cmdstat_client|setinfo", "cmdstat_mget", "cmdstat_config|resetstat", "cmdstat_info"}


def test_on_close_is_called_once(server: Server) -> None:
    closed: list[int] = []
    store = RedisStore(server.url, on_close=lambda: closed.append(1), name="mine")
    store.ping(5)
    assert store.name == "mine"
    store.close()
    store.close()
    assert closed == [1]
