"""Which store is opened, and that it is said once, without passwords."""

import logging
from pathlib import Path

import pytest

from feature_client import opening
from feature_client.errors import StoreError
from feature_client.memory_store import MemoryStore
from feature_client.opening import open_store
from feature_client.redis_store import RedisStore
from tests.feature_client.rows_for_stores import row
from tests.feature_client.servers import free_port, guarded_server, tcp_server


@pytest.fixture
def nowhere() -> str:
    """A URL at which nobody listens."""
    return f"redis://user:s3cret@127.0.0.1:{free_port()}/0"


def said(caplog: pytest.LogCaptureFixture) -> str:
    """The one line that was logged."""
    (record,) = caplog.records
    assert record.name == "feature_client.opening"
    assert "s3cret" not in caplog.text
    assert "%73" not in caplog.text
    return record.getMessage()


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_a_url_comes_before_the_environment(tmp_path: Path, nowhere: str, caplog: pytest.LogCaptureFixture) -> None:
    with guarded_server(tmp_path) as server:
        store = open_store(server.url, environ={"REDIS_URL": nowhere}, require=True)
        store.close()
        assert said(caplog) == f"features: store redis://127.0.0.1:{server.port}/0 (as told)"


def test_the_environment_comes_before_what_is_there(tmp_path: Path, nowhere: str, caplog: pytest.LogCaptureFixture) -> None:
    with tcp_server(tmp_path) as server:
        store = open_store(environ={"REDIS_URL": server.url}, local=nowhere)
        store.close()
        assert said(caplog) == f"features: store redis://127.0.0.1:{server.port}/0 (from REDIS_URL)"


def test_a_local_server_is_taken_when_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tcp_server(tmp_path) as server:
        store = open_store(environ={"REDIS_URL": ""}, local=server.url)
        assert store.write([(b"k", row(1))], 60) == 1
        store.close()
        assert said(caplog).startswith(f"features: store redis://127.0.0.1:{server.port}/0 (REDIS_URL is not set, and a local")


def test_a_local_server_that_admits_nobody_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with guarded_server(tmp_path) as server:
        store = open_store(environ={}, local=f"redis://127.0.0.1:{server.port}/0")
        assert store.name == "embedded"
        store.close()
        assert "NOAUTH" in said(caplog)


def test_then_comes_a_server_of_ones_own_which_ends_with_the_store(nowhere: str, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(environ={}, local=nowhere)
    assert store.name == "embedded"
    assert store.write([(b"k", row(1))], 60) == 1
    assert store.read([b"k"], 5) == [row(1)]
    store.close()
    with pytest.raises(StoreError):
        store.read([b"k"], 1)
    line = said(caplog)
    assert line.startswith("features: store embedded (REDIS_URL is not set; redis://127.0.0.1")
    assert line.endswith("rows end with this process)")
    assert ".sock" not in line


def test_then_comes_this_process(nowhere: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(opening, "server_program", lambda: None)
    assert isinstance(open_store(environ={}, local=nowhere), MemoryStore)
    assert "no server program is installed" in said(caplog)


def test_an_embedded_server_that_fails_leaves_this_process(
    nowhere: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing() -> None:
        raise StoreError("the embedded server ended at once: out of luck")

    monkeypatch.setattr(opening, "EmbeddedServer", failing)
    assert isinstance(open_store(environ={}, local=nowhere), MemoryStore)
    assert "out of luck" in said(caplog)


def test_both_can_be_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(open_store("memory://"), MemoryStore)
    assert said(caplog) == "features: store memory (as told)"
    caplog.clear()
    store = open_store(environ={"REDIS_URL": "embedded://"})
    store.close()
    assert said(caplog) == "features: store embedded (from REDIS_URL)"


def test_a_url_that_cannot_be_reached_yet_opens_and_comes_alive(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tcp_server(tmp_path) as server:
        server.kill()
        store = open_store(server.url)
        assert isinstance(store, RedisStore)
        assert "does not answer yet: " in said(caplog)
        assert caplog.records[0].levelno == logging.WARNING
        with pytest.raises(StoreError):
            store.read([b"k"], 0.05)
        server.start()
        for attempt in range(200):
            try:
                assert store.read([b"k"], 1) == [None]
                break
            except StoreError:
                assert attempt < 199
        store.close()


def test_a_url_that_must_be_reached_is_an_error(nowhere: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StoreError, match=r"redis://127\.0\.0\.1:\d+/0 cannot be reached"):
        open_store(nowhere, require=True)
    assert caplog.records == []


def test_a_url_that_is_none_is_an_error_in_any_case() -> None:
    with pytest.raises(StoreError, match="starts with one of"):
        open_store("localhost:6379")
