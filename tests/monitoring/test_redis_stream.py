"""Through a real server: every row once, whatever breaks on the way; what is lost is counted."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feature_client.errors import StoreError
from server.core.errors import InvalidRequest, NotReady
from server.core.versions import VersionKey
from server.monitoring.entries import Offered
from server.monitoring.outcome import Outcome
from server.monitoring.redis_sink import RedisOutcomes, RedisSink, RedisWriter
from server.monitoring.redis_source import RedisSource, Taking
from server.monitoring.samples import Samples, together
from server.monitoring.sink import Lost
from tests.feature_client.proxy import Proxy
from tests.feature_client.servers import Server, tcp_server
from tests.monitoring.rows import KEY, equal, rows_of

STREAM = "podium:samples"


class Taken:
    """Everything a source handed out, in order."""

    def __init__(self) -> None:
        self.samples: list[Samples] = []
        self.offered: list[Offered] = []
        self.outcomes: list[Outcome] = []
        self.at: list[tuple[str, int]] = []
        self.beginnings = 0

    @property
    def taking(self) -> Taking:
        return _Into(self)

    @property
    def rows(self) -> int:
        return sum(each.rows for each in self.samples)


class _Into:
    def __init__(self, taken: Taken) -> None:
        self.taken = taken

    def reached(self, entry: str, time_us: int) -> None:
        self.taken.at.append((entry, time_us))

    def samples(self, entry: str, samples: Samples) -> None:
        assert entry == self.taken.at[-1][0]
        self.taken.samples.append(samples)

    def offered(self, entry: str, counts: Offered) -> None:
        self.taken.offered.append(counts)

    def outcome(self, entry: str, outcome: Outcome) -> None:
        self.taken.outcomes.append(outcome)

    def begun_anew(self) -> None:
        self.taken.beginnings += 1


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with tcp_server(tmp_path_factory.mktemp("stream")) as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Server:
    shared.command("FLUSHALL")
    return shared


def sink_to(url: str, *, keep_rows: int = 10**6, retry_s: float = 20.0) -> RedisSink:
    return RedisSink(writer_to(url, keep_rows, retry_s), writer_to(url, keep_rows, retry_s), lambda key: ((), {}))


def writer_to(url: str, keep_rows: int = 10**6, retry_s: float = 20.0) -> RedisWriter:
    return RedisWriter(url, STREAM, keep_rows, retry_s)


def read_all(url: str, taken: Taken, position: bytes = b"") -> RedisSource:
    source = RedisSource(url, STREAM, position, taken.taking)
    while source.read(0):
        pass
    source.close()
    return source


def test_rows_of_every_kind_come_through_to_the_bit_in_entries_of_bounded_size(server: Server) -> None:
    sink = sink_to(server.url)
    first, second = rows_of(5000, 1), rows_of(40, 2, key=VersionKey("other", 1), arm="shadow")
    sink.write([first, second])
    sink.close()
    taken = Taken()
    read_all(server.url, taken)
    assert len(taken.samples) > 2
    assert max(each.nbytes for each in taken.samples) < 400 * 1024
    found = {each.key: each for each in together(taken.samples)}
    assert equal(found[KEY], first)
    assert equal(found[second.key], second)


def test_losses_and_outcomes_come_through(server: Server) -> None:
    sink = sink_to(server.url)
    for _ in range(3):
        sink.lost(KEY, "champion", 10, 5_000_000)
    sink.lost(KEY, "champion", 10, 6_000_000)
    sink.idle()
    outcomes = [Outcome("fraud", 0, f"id-{at}", at, 1.0) for at in range(12_000)]
    sending = RedisOutcomes(writer_to(server.url))
    sending.send(outcomes)
    taken = Taken()
    read_all(server.url, taken)
    assert taken.offered == [Offered(KEY, "champion", 30, 30, 5_000_000), Offered(KEY, "champion", 10, 10, 6_000_000)]
    assert taken.outcomes == outcomes
    with pytest.raises(InvalidRequest, match="5000"):
        sending.send([Outcome("m", 0, "x" * 5000, 0, 1.0)])
    sending.close()
    sink.close()


def test_what_is_redacted_never_leaves_and_a_log_line_says_so(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    sink = RedisSink(writer_to(server.url), writer_to(server.url), lambda key: (("user", "age"), {"pixels": ("age",)}))
    sink.write([rows_of(10), rows_of(10)])
    sink.close()
    assert [record.message for record in caplog.records].count(
        "redacted columns are not monitored: they stay in this process"
    ) == 1
    assert b"user" not in server.command("XRANGE", STREAM, "-", "+")[0][1][b"b"]
    taken = Taken()
    read_all(server.url, taken)
    (samples,) = taken.samples
    assert (set(samples.inputs), set(samples.callers)) == ({"amount", "flags", "half"}, {"at"})
    assert samples.features == ("amount",)


def test_an_entry_whose_answer_was_lost_is_counted_once(server: Server) -> None:
    with Proxy(server.port) as proxy:
        sink = sink_to(server.url.replace(str(server.port), str(proxy.port)))
        sink.write([rows_of(10, 0)])
        lost = proxy.pieces + 1
        proxy.delay_s = lambda piece: 30.0 if piece == lost else 0.0
        sink.write([rows_of(10, 1)])
        sink.write([rows_of(10, 2)])
        sink.close()
    assert server.command("XLEN", STREAM) == 4
    taken = Taken()
    source = read_all(server.url, taken)
    assert all(equal(found, rows_of(10, seed)) for seed, found in enumerate(taken.samples))
    assert (taken.rows, source.missed_rows) == (30, 0)


def test_what_is_given_up_is_lost_once_and_the_next_comes_through(server: Server) -> None:
    sink = sink_to(server.url, retry_s=0.2)
    sink.write([rows_of(10, 0)])
    server.command("CONFIG", "SET", "maxmemory", "1")
    sink.lost(KEY, "champion", 25, 1_000_000)
    with pytest.raises(Lost, match="OOM") as caught:
        sink.write([rows_of(15, 1), rows_of(5, 3, arm="shadow")])
    assert caught.value.losses == ((KEY, "champion", 15, 10**15), (KEY, "shadow", 5, 10**15))
    sink.lost(KEY, "champion", 15, 2_000_000)
    server.command("CONFIG", "SET", "maxmemory", "0")
    sink.write([rows_of(10, 2)])
    sink.close()
    taken = Taken()
    source = read_all(server.url, taken)
    assert (taken.rows, source.missed_rows) == (20, 0)
    assert taken.offered == [Offered(KEY, "champion", 25, 25, 1_000_000), Offered(KEY, "champion", 15, 15, 2_000_000)]


def test_a_part_of_a_call_that_is_in_the_stream_is_not_lost(server: Server) -> None:
    sink = sink_to(server.url, retry_s=0.1)
    server.command("SET", "other", "x")
    good, bad = rows_of(7, 1), rows_of(3, 2, arm="x" * 5000)
    with pytest.raises(Lost) as caught:
        sink.write([good, bad])
    assert caught.value.rows == 3
    taken = Taken()
    read_all(server.url, taken)
    assert taken.rows == 7
    sink.close()


def test_without_a_server_outcomes_are_refused_and_closing_waits_for_nobody(tmp_path: Path) -> None:
    writer = RedisWriter(f"unix://{tmp_path}/none.sock", STREAM, 10, retry_s=0.1)
    outcomes = RedisOutcomes(writer)
    with pytest.raises(NotReady, match="handed on"):
        outcomes.send([Outcome("m", 0, "a", 0, 1.0)])
    patient = RedisWriter(f"unix://{tmp_path}/none.sock", STREAM, 10, retry_s=1000)
    failed: list[BaseException] = []

    def add() -> None:
        try:
            patient.add("samples", b"", 1)
        except StoreError as error:
            failed.append(error)

    thread = threading.Thread(target=add)
    thread.start()
    patient.close()
    thread.join(30)
    assert failed


@pytest.mark.parametrize("url", ["http://a", "redis+cluster://a:1", "redis://a/x"])
def test_a_url_that_cannot_have_a_stream_is_refused_at_once(url: str) -> None:
    with pytest.raises(StoreError):
        RedisWriter(url, STREAM, 10)


def test_what_was_trimmed_before_it_was_read_is_counted_as_dropped(server: Server) -> None:
    sink, taken = sink_to(server.url), Taken()
    sink.write([rows_of(10, 0)])
    source = read_all(server.url, taken)
    for seed in range(1, 6):
        sink.write([rows_of(10, seed, first_us=1000 * seed)])
    server.command("XTRIM", STREAM, "MAXLEN", 2)
    sink.close()
    again = read_all(server.url, taken, source.position)
    assert again.missed_rows == 30
    assert taken.offered == [Offered(KEY, "champion", 30, 30, 4000)]
    assert taken.rows == 30


def test_the_stream_keeps_about_as_many_rows_as_it_may(server: Server) -> None:
    sink = sink_to(server.url, keep_rows=20_000)
    for seed in range(600):
        sink.write([rows_of(100, seed % 3)])
    sink.close()
    # entries go by the node of the stream, of 100 entries
    assert 200 <= server.command("XLEN", STREAM) <= 200 + 100


def test_losses_of_a_long_outage_stay_bounded_and_complete(server: Server) -> None:
    sink = sink_to(server.url)
    for minute in range(10_500):
        sink.lost(KEY, "champion", 2, minute)
    sink.close()
    taken = Taken()
    read_all(server.url, taken)
    assert len(taken.offered) == 10_000
    assert sum(each.dropped for each in taken.offered) == 21_000


def test_losses_whose_answer_was_lost_are_counted_once(server: Server) -> None:
    with Proxy(server.port) as proxy:
        through = server.url.replace(str(server.port), str(proxy.port))
        losses = writer_to(through, retry_s=0.1)
        sink = RedisSink(writer_to(server.url), losses, lambda key: ((), {}))
        sink.lost(KEY, "champion", 1, 0)
        sink.idle()
        silent = proxy.pieces + 1
        proxy.delay_s = lambda piece: 30.0 if piece == silent else 0.0
        sink.lost(KEY, "champion", 2, 0)
        sink.idle()
        sink.lost(KEY, "champion", 4, 0)
        sink.close()
        sink.idle()
    assert server.command("XLEN", STREAM) == 4
    taken = Taken()
    read_all(server.url, taken)
    assert [each.dropped for each in taken.offered] == [1, 2, 4]


def test_what_others_write_stops_nobody(server: Server) -> None:
    sink = sink_to(server.url)
    sink.write([rows_of(10, 0)])
    server.command("XADD", STREAM, "*", "what", "ever")
    server.command("XADD", STREAM, "*", "w", "a", "s", "1", "k", "samples", "b", "junk", "c", "0")
    server.command("XADD", STREAM, "*", "w", "a", "s", "2", "k", "poem", "b", "junk")
    server.command("XADD", STREAM, "*", "w", b"\xff", "s", "x", "k", "samples", "b", "junk")
    sink.write([rows_of(10, 1)])
    sink.close()
    taken = Taken()
    source = read_all(server.url, taken)
    assert (taken.rows, source.damaged_entries, source.missed_rows) == (20, 4, 0)


def test_a_reader_waits_for_what_comes(server: Server) -> None:
    taken = Taken()
    source = RedisSource(server.url, STREAM, b"", taken.taking)
    assert source.read(0.01) == 0
    sink = sink_to(server.url)
    thread = threading.Timer(0.05, sink.write, ([rows_of(3)],))
    thread.start()
    assert source.read(60) == 1
    thread.join()
    assert taken.rows == 3
    sink.close()
    source.close()


def test_a_server_that_starts_anew_loses_what_was_unread_and_nothing_else(tmp_path: Path) -> None:
    with tcp_server(tmp_path) as server:
        sink, taken = sink_to(server.url), Taken()
        sink.write([rows_of(10, 0)])
        source = RedisSource(server.url, STREAM, b"", taken.taking)
        assert source.read(0) == 1
        assert source.read(0) == 0
        sink.write([rows_of(10, 1)])
        server.kill()
        with pytest.raises(StoreError):
            source.read(0)
        starting = threading.Timer(0.2, server.start)
        starting.start()
        sink.write([rows_of(10, 2)])
        starting.join()
        while not source.read(0):
            pass
        assert (taken.rows, source.missed_rows) == (20, 10)
        sink.close()
        source.close()


def test_a_stream_whose_ids_began_anew_is_read_from_its_beginning(server: Server) -> None:
    """A server that lost its memory, with a clock behind the one before."""
    sink, taken = sink_to(server.url), Taken()
    sink.write([rows_of(10, 0)])
    source = RedisSource(server.url, STREAM, b"", taken.taking)
    while source.read(0):
        pass
    fields: Any = server.command("XRANGE", STREAM, "-", "+")[0][1]
    server.command("FLUSHALL")
    assert source.read(0) == 0
    words = [word for pair in ({**fields, b"s": b"2", b"c": b"10"}).items() for word in pair]
    server.command("XADD", STREAM, "5-0", *words)
    assert source.read(0) == 0
    assert source.read(0) == 1
    assert (taken.rows, source.missed_rows, taken.beginnings) == (20, 0, 1)
    assert taken.at[-1] == ("5-0", 5000)
    assert source.last == "5-0"
    sink.close()
    source.close()
