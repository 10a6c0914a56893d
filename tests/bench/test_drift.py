"""The drift benchmark runs from end to end without peers, and says of dummies what it says of everybody."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.drift.calibration import calibration
from bench.drift.command import main
from bench.drift.document import DOCUMENT, read, written
from bench.drift.dummies import dummies
from bench.drift.install import PEERS, PINS
from bench.drift.playing import change_of, outlier, play
from bench.drift.report import tables
from bench.drift.scoring import best, required, rows_of
from bench.drift.streams import DAY, OUTLIER, Scenario, Table, baseline, digest, from_json, window, with_outlier

CASE = {"scenario": {"kind": "numbers", "rows": 200, "seed": 1}, "baseline_rows": 5000, "windows": 48, "repeats": 4, "wait": 24}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("drift")
    assert main(["--quick", "--without-peers", "--out", str(folder)]) == 0
    read: dict[str, Any] = json.loads((folder / "drift.json").read_text("utf-8"))
    return read


def test_everybody_has_a_row_in_every_case(result: dict[str, Any]) -> None:
    cases = {("numbers", 200), ("numbers", 1000), ("numbers", 10_000), ("categories", 1000), ("missing", 1000)}
    found = {(row["detector"], row["rule"], row["kind"], row["rows"]) for row in result["rows"]}
    names = {(name, "dummy") for name in ("never", "always", "every 24th", "coin, p=0.05")}
    names |= {("Podium", "the version's alarm"), ("Podium", "any detector alone")}
    assert found == {(*name, *case) for name in names for case in cases}
    for row in result["rows"]:
        assert row["windows"] == 6
        assert row["alarms"] <= 6
        assert row["repeats"] == len(row["delays"]) == 1


def test_it_says_where_and_with_what_it_was_made(result: dict[str, Any]) -> None:
    assert result["quick"] is True
    assert result["peers"] == []
    assert result["machine"]["cores"] > 0
    assert result["streams"]["seed"] == 1
    assert {row["detector"] for row in result["outliers"]} == {"Podium"}
    assert all(isinstance(row["met"], bool) for row in result["required"])
    assert {row["score"] for row in result["best"]} == {"alarms_per_672", "delay_median"}


def test_its_tables_have_every_detector(result: dict[str, Any]) -> None:
    lines = tables(result)
    for name in ("Podium", "never", "always", "every 24th", "coin, p=0.05"):
        assert sum(line.startswith(f"| {name} |") for line in lines) >= 2
    assert len({line.count("|") for line in lines if line.startswith("| never")}) == 2


def test_ours_finds_a_large_change_through_the_whole_way(result: dict[str, Any]) -> None:
    """0.3 standard deviations in 10,000 rows: the p-value is below 1e-100, so no seed decides."""
    (row,) = [row for row in result["rows"] if (row["rule"], row["rows"]) == ("the version's alarm", 10_000)]
    assert row["delays"] == [1]
    assert row["alarms"] == 0


def test_dummies_do_what_their_names_say() -> None:
    played = {dummy.name: play(dummy, CASE) for dummy in dummies(1)}
    assert played["never"].alarms == {"dummy": []}
    assert played["never"].delays == {"dummy": [None] * 4}
    assert played["always"].alarms == {"dummy": list(range(48))}
    assert played["always"].delays == {"dummy": [1] * 4}
    assert played["every 24th"].alarms == {"dummy": [23, 47]}
    assert played["every 24th"].delays == {"dummy": [DAY - change_of(repeat) % DAY for repeat in range(4)]}
    assert 0 < len(played["coin, p=0.05"].alarms["dummy"]) < 20  # of 48 at 0.05, seeded


def test_a_score_that_a_dummy_wins_is_named() -> None:
    rows = [row for dummy in dummies(1) for row in rows_of(dummy.name, CASE, vars_of(play(dummy, CASE)))]
    alarms, delay = best(rows)
    assert (alarms["score"], alarms["value"], alarms["best"], alarms["won_by_a_dummy"]) == (
        "alarms_per_672",
        0,
        ["never (dummy)"],
        True,
    )
    assert (delay["value"], delay["best"]) == (1, ["always (dummy)"])


def vars_of(played: Any) -> dict[str, Any]:
    return {name: getattr(played, name) for name in played.__dataclass_fields__}


def test_what_must_be_reached_is_missed_by_who_always_alarms() -> None:
    always = next(dummy for dummy in dummies(1) if dummy.name == "always")
    found = required(rows_of("always", CASE, vars_of(play(always, CASE))), [], [], "dummy")
    assert [(row["value"], row["met"]) for row in found] == [(672.0, False), (1, True)]


def test_an_error_is_a_row() -> None:
    assert rows_of("peer", CASE, {"error": "no"}) == [{"detector": "peer", "kind": "numbers", "rows": 200, "error": "no"}]


@pytest.mark.parametrize("kind", ["numbers", "categories", "missing"])
def test_a_window_is_made_of_its_seed_alone(kind: Any) -> None:
    scenario = Scenario(kind, 300, seed=3, change_at=5)
    assert digest(window(scenario, 7)) == digest(window(from_json(scenario.as_json()), 7))
    assert len({digest(window(scenario, index)) for index in range(10)}) == 10
    assert digest(baseline(scenario, 300)) == digest(baseline(Scenario(kind, 1000, seed=3), 300))
    assert window(scenario, 4).numbers.dtype == np.float32


def test_the_change_is_what_it_is_said_to_be() -> None:
    before, after = (window(Scenario("numbers", 10_000, change_at=at), 0) for at in (None, 0))
    moved = after.numbers - before.numbers
    assert np.allclose(moved[:, 0], 0.3, atol=1e-6)
    assert not moved[:, 1:].any()
    new = window(Scenario("categories", 10_000, change_at=0), 0).codes
    assert 60 < (new[:, 0] == 8).sum() < 140  # 100 of 10,000 within 4 standard deviations
    assert new[:, 1:].max() == 7
    gaps = np.isnan(window(Scenario("missing", 10_000, change_at=0), 0).numbers).sum(axis=0)
    assert 230 < gaps[0] < 370
    assert (gaps[1:10] < 140).all()
    assert not gaps[10:].any()


def test_the_outlier_is_one_row_more() -> None:
    rows = window(Scenario("numbers", 50), 0)
    more = with_outlier(rows)
    assert more.rows == 51
    assert more.numbers[50, 0] == OUTLIER
    assert (more.numbers[:50] == rows.numbers).all()


class Mean:
    """A measure that an outlier does move."""

    name, rules, memory, blind, at_once = "mean", ("none",), False, False, 1

    def fit(self, rows: Table, window_rows: int) -> None: ...

    def effect(self, rows: Table) -> float:
        return float(rows.numbers[:, 0].mean())


def test_what_an_outlier_does_is_told_in_per_cent() -> None:
    measured: Any = Mean()
    told = outlier(measured, CASE | {"windows": 2})
    assert told["effect_with_outlier"] > 40
    assert told["change_percent"] == pytest.approx(100 * (told["effect_with_outlier"] / told["effect"] - 1))


def test_calibration_is_counted() -> None:
    rows = calibration(50, seed=1)
    assert {row["test"] for row in rows} == {"psi", "psi, shifted as tolerated", "homogeneity"}
    assert all(0 <= row["rate"] <= 1 and row["windows"] == 50 for row in rows)
    assert all((row["met"] is None) == (row["band"] is None) for row in rows)


def test_every_peer_has_its_pins() -> None:
    for peer in PEERS:
        pins = (PINS / f"{peer.distribution}.txt").read_text("utf-8").splitlines()
        assert any(line.startswith(f"{peer.distribution}==") for line in pins)
        assert all("==" in line for line in pins)
        assert (Path(PINS) / f"{peer.module}.py").exists()


def test_the_document_says_what_was_measured() -> None:
    """Whoever measures again writes it down again: `python -m bench.drift.document`."""
    text = DOCUMENT.read_text("utf-8")
    assert written(text, read()) == text
    assert written(text.replace(" | ", " |  "), read()) != text.replace(" | ", " |  ")


def test_a_result_without_a_place_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no place for drift\.json"):
        written("nothing", {"drift": {}})
