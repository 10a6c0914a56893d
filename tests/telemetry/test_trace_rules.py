"""Whose turn it is to be traced, and how layers of settings change that."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import InvalidRequest, Unsupported
from server.telemetry.trace_rules import Quota, TraceLayers, TraceRules, changes_of, values_of

ON = frozenset({"TIMESTAMPS"})
START = TraceRules(ON, 1, -1, 0)


def layers(start: TraceRules = START, mode: str = "triton", file: str = "t.json") -> TraceLayers:
    return TraceLayers(start, mode, file)


def rules_of(made: TraceLayers, model: str = "") -> tuple[list[str], int, int, int]:
    rules = made.quota(model).now()
    return sorted(rules.trace_level), rules.trace_rate, rules.trace_count, rules.log_frequency


@given(st.integers(1, 50), st.integers(0, 20), st.integers(0, 49))
def test_one_in_rate_is_traced_exactly(rate: int, rounds: int, rest: int) -> None:
    quota = Quota(TraceRules(ON, rate))
    taken = [quota.take(forced=False) for _ in range(rate * rounds + rest % rate)]
    assert sum(taken) == rounds
    assert [index + 1 for index, hit in enumerate(taken) if hit] == [rate * turn for turn in range(1, rounds + 1)]


@given(st.integers(1, 5), st.integers(0, 10), st.lists(st.booleans(), max_size=100))
def test_the_count_runs_out_and_callers_go_on(rate: int, count: int, forced: list[bool]) -> None:
    quota = Quota(TraceRules(ON, rate, count))
    taken = [quota.take(each) for each in forced]
    turns = min(len(forced) // rate, count)
    assert quota.now().trace_count == count - turns
    assert all(hit for hit, each in zip(taken, forced, strict=True) if each)
    assert sum(hit for hit, each in zip(taken, forced, strict=True) if not each) <= turns
    assert quota.exhausted() == (turns == count)


def test_what_is_off_traces_nobody_and_rate_0_only_callers() -> None:
    assert not Quota(TraceRules()).take(forced=True)
    asked = Quota(TraceRules(ON, 0))
    assert [asked.take(forced) for forced in (False, True, False)] == [False, True, False]


def test_settings_fall_through_the_layers() -> None:
    made = layers()
    made.change("m", {"trace_rate": 12, "log_frequency": 34})
    made.change("", {"trace_rate": 56, "trace_count": 78, "trace_level": frozenset()})
    assert rules_of(made) == ([], 56, 78, 0)
    assert rules_of(made, "m") == ([], 12, 78, 34)
    made.change("", {"trace_rate": None, "trace_count": None})
    assert rules_of(made) == ([], 1, -1, 0)
    assert rules_of(made, "m") == ([], 12, -1, 34)
    made.change("m", {"trace_rate": None, "trace_level": None})
    assert rules_of(made, "m") == ([], 1, -1, 34)
    made.change("m", {"log_frequency": None})
    assert made.quota("m") is made.quota("")
    assert len(made.quotas()) == 1


def test_a_count_goes_on_where_another_setting_changes() -> None:
    made = layers()
    made.change("m", {"trace_count": 5})
    made.change("", {"trace_count": 9})
    assert made.quota("m").take(forced=False)
    assert made.quota("").take(forced=False)
    made.change("m", {"log_frequency": 2})
    assert rules_of(made, "m") == (["TIMESTAMPS"], 1, 4, 2)
    made.change("", {"trace_rate": 3})
    assert rules_of(made) == (["TIMESTAMPS"], 3, 8, 0)
    assert rules_of(made, "m") == (["TIMESTAMPS"], 3, 4, 2)
    made.change("m", {"trace_count": None})
    assert rules_of(made, "m") == (["TIMESTAMPS"], 3, 8, 2)


@pytest.mark.parametrize(
    ("mode", "file", "changes", "problem"),
    [
        ("triton", "", {"trace_level": ON}, "trace file name is not given"),
        ("triton", "f", {"trace_level": ON, "trace_rate": 0}, "sample rate must be non-zero"),
        (
            "opentelemetry",
            "",
            {"trace_level": frozenset({"TENSORS"})},
            "trace level TENSORS is not supported by mode opentelemetry",
        ),
    ],
)
def test_what_cannot_be_followed_changes_nothing(mode: str, file: str, changes: dict[str, Any], problem: str) -> None:
    made = layers(TraceRules(), mode, file)
    for model in ("", "m"):
        with pytest.raises(InvalidRequest, match=f"^Attempting to set invalid trace setting :{problem}$"):
            made.change(model, {**changes, "trace_count": 3})
        assert rules_of(made, model) == ([], 1000, -1, 0)


def test_a_change_for_all_that_one_model_could_not_follow_changes_nothing() -> None:
    made = layers()
    made.change("m", {"trace_level": ON})
    with pytest.raises(InvalidRequest, match="sample rate must be non-zero"):
        made.change("", {"trace_level": frozenset(), "trace_rate": 0})
    assert rules_of(made) == rules_of(made, "m") == (["TIMESTAMPS"], 1, -1, 0)


def test_opentelemetry_needs_no_file_and_no_rate() -> None:
    made = layers(TraceRules(), "opentelemetry", "")
    made.change("", {"trace_level": ON, "trace_rate": 0})
    assert rules_of(made) == (["TIMESTAMPS"], 0, -1, 0)


def test_values_are_read() -> None:
    asked = {
        "trace_level": ["TIMESTAMPS", "TENSORS"],
        "trace_rate": ["4294967295"],
        "trace_count": ["-1"],
        "log_frequency": [],
        "trace_mode": ["triton"],
    }
    assert changes_of(asked, "triton") == {
        "trace_level": frozenset({"TIMESTAMPS", "TENSORS"}),
        "trace_rate": 4294967295,
        "trace_count": -1,
        "log_frequency": None,
    }
    assert changes_of({"trace_level": ["OFF"], "trace_count": ["0"]}, "triton") == {
        "trace_level": frozenset(),
        "trace_count": 0,
    }


@pytest.mark.parametrize(
    ("name", "texts", "told"),
    [
        ("trace_level", ["OFF", "TIMESTAMPS"], "Expect only one trace level 'OFF' is specified"),
        ("trace_level", ["LOUD"], "unrecognized trace level 'LOUD', expected OFF, TIMESTAMPS or TENSORS."),
        ("trace_rate", ["1", "2"], "expect only 1 value for 'trace_rate'"),
        ("trace_rate", ["often"], "Unable to parse 'trace_rate', got: often"),
        ("trace_rate", [""], "Unable to parse 'trace_rate', got: "),
        ("trace_rate", ["٣"], "Unable to parse 'trace_rate', got: ٣"),
        ("trace_rate", ["-1"], "Unable to parse 'trace_rate', value is out of range [ 0, 4294967295 ], got: -1"),
        (
            "log_frequency",
            ["4294967296"],
            "Unable to parse 'log_frequency', value is out of range [ 0, 4294967295 ], got: 4294967296",
        ),
        (
            "log_frequency",
            ["9" * 5000],
            f"Unable to parse 'log_frequency', value is out of range [ 0, 4294967295 ], got: {'9' * 5000}",
        ),
        ("trace_count", ["-2"], "Unable to parse 'trace_count'. Expecting value >= -1, got: -2"),
        (
            "trace_count",
            ["2147483648"],
            "Unable to parse 'trace_count', value is out of range [ -1, 2147483647 ], got: 2147483648",
        ),
        ("trace_colour", ["red"], "unrecognized trace setting 'trace_colour'."),
        ("trace_colour", [], "unrecognized trace setting 'trace_colour'."),
    ],
)
def test_values_that_cannot_be_read(name: str, texts: list[str], told: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        changes_of({name: texts}, "triton")
    assert str(refused.value) == told


@pytest.mark.parametrize(
    ("name", "texts"), [("trace_file", ["f"]), ("trace_file", []), ("trace_mode", ["opentelemetry"]), ("trace_mode", [])]
)
def test_where_traces_go_is_not_the_networks_business(name: str, texts: list[str]) -> None:
    with pytest.raises(Unsupported, match=r"^trace (file location|mode) can not be updated through network protocol$"):
        changes_of({name: texts, "trace_rate": ["nonsense"]}, "triton")


def test_values_are_told() -> None:
    assert values_of(TraceRules(), "triton", "t.json") == {
        "trace_level": ["OFF"],
        "trace_rate": ["1000"],
        "trace_count": ["-1"],
        "trace_mode": ["triton"],
        "log_frequency": ["0"],
        "trace_file": ["t.json"],
    }
    both = TraceRules(frozenset({"TENSORS", "TIMESTAMPS"}), 0, 3, 4)
    assert values_of(both, "opentelemetry", "") == {
        "trace_level": ["TIMESTAMPS", "TENSORS"],
        "trace_rate": ["0"],
        "trace_count": ["3"],
        "trace_mode": ["opentelemetry"],
    }
