from server.core.versions import State, VersionKey
from server.lifecycle.index import IndexRow, index_rows
from server.lifecycle.policy import Actual, Failure, Identity
from tests.lifecycle.doubles import SETTINGS, Model, model, version

FAILURE = Failure(Identity("b", SETTINGS), 1, 0, "golden examples: no")


def key(number: int) -> VersionKey:
    return VersionKey("m", number)


def test_every_version_has_a_row_with_its_reason() -> None:
    found = {
        "m": model(
            "m", 1, version(2, problem="no manifest"), version(3, settled=False), 4, version(5, problem="torn"), 6, 7, 8
        ),
        "bare": Model("bare"),
        "bad": Model("bad", None, {}, {}, "model.toml: line 3"),
    }
    actual = {
        key(4): Actual(State.READY),
        key(5): Actual(State.READY),
        key(6): Actual(State.READY, failure=FAILURE),
        key(7): Actual(State.LOADING),
        key(8): Actual(State.UNAVAILABLE, reason="unloaded"),
        VersionKey("ghost", 1): Actual(State.UNLOADING),
    }
    assert index_rows(found, actual) == [
        IndexRow("bad", "", "UNAVAILABLE", "model.toml: line 3"),
        IndexRow("bare", "", "", ""),
        IndexRow("ghost", "1", "UNLOADING", ""),
        IndexRow("m", "1", "", ""),
        IndexRow("m", "2", "UNAVAILABLE", "no manifest"),
        IndexRow("m", "3", "", "its files are still being written"),
        IndexRow("m", "4", "READY", ""),
        IndexRow("m", "5", "READY", "serves what was loaded before; on disk: torn"),
        IndexRow("m", "6", "READY", "serves what was loaded before: golden examples: no"),
        IndexRow("m", "7", "LOADING", ""),
        IndexRow("m", "8", "UNAVAILABLE", "unloaded"),
    ]
    assert index_rows({}, {}) == []
