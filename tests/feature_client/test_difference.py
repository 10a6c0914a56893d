"""What differs is said in a line each, and nothing is said where nothing differs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_client.difference import differences
from feature_client.fingerprint import Description, describe
from tests.feature_client import views
from tests.feature_client.test_fingerprint import ORDER, OTHER, SAME
from tests.feature_client.written import BASE, HELPERS, loaded, request_view


def described(folder: Path, text: str = BASE, helpers: str = HELPERS) -> Description:
    (found,) = loaded(folder, text, helpers).descriptions.values()
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Description:
    return described(tmp_path_factory.mktemp("base"))


SAID = {
    "the type of a feature": [
        "type of the feature 'flights': int32 -> int64",
        "default of the feature 'flights': int32 0 -> int64 0",
    ],
    "a default": ["default of the feature 'flights': int32 0 -> int32 1"],
    "max_age of the view": ["max_age_us: 2592000000000 -> 2678400000000"],
    "max_age of a feature": ["max_age_us of the feature 'ratio': 5 -> 6"],
    "a null policy": ["null policy of the feature 'ratio': default -> keep"],
    "a policy": ["on_missing: default -> fail"],
    "a window": ["window_us of the input 'delay': 604800000000 -> 691200000000"],
    "the order of inputs": ["order of the inputs: n, delay -> delay, n"],
    "the name of the log": ["name of the event log: flights -> departures"],
    "a created time": ["created time: nothing -> event_us"],
    "the version": ["view: tail@1 -> tail@2"],
    "a literal": [
        "code of 'tail': - return {'flights': np.minimum(n, 1000).astype(np.int32), 'ratio': ratio} | "
        "+ return {'flights': np.minimum(n, 1001).astype(np.int32), 'ratio': ratio}"
    ],
    "a constant": ["'LIMIT' in 'tail': 15.0 -> 15"],
    "a constant of another type": ["'LIMIT' in 'tail': 15.0 -> float32 15.0"],
    "a default argument": ["default arguments of 'clipped': ((-60.0), {'high': 600.0}) -> ((-60), {'high': 600.0})"],
}


@pytest.mark.parametrize("what", OTHER)
def test_every_change_is_said(tmp_path: Path, base: Description, what: str) -> None:
    said = differences(base, described(tmp_path, BASE.replace(*OTHER[what])))
    assert said
    assert said == SAID.get(what, said)


@pytest.mark.parametrize("what", SAME)
def test_nothing_is_said_of_what_does_not_count(tmp_path: Path, base: Description, what: str) -> None:
    assert differences(base, described(tmp_path, BASE.replace(*SAME[what]))) == []


def test_features_that_come_go_and_move(tmp_path: Path, base: Description) -> None:
    turned = 'features=[Feature("ratio", "float32", float("nan"), max_age_us=5), Feature("flights", "int32", 0)]'
    found = differences(base, described(tmp_path, BASE.replace(ORDER, turned)))
    assert found == ["order of the features: flights, ratio -> ratio, flights"]
    document: dict[str, Any] = {**base.document, "features": base.document["features"][:1], "inputs": []}
    assert differences(base, Description(document, base.texts)) == [
        "input 'n' is gone",
        "input 'delay' is gone",
        "feature 'ratio' is gone",
    ]
    assert differences(Description(document, base.texts), base)[-1] == "feature 'ratio' is new"


def test_a_constant_deep_in_a_helper_is_named(tmp_path: Path, base: Description) -> None:
    assert differences(base, described(tmp_path, helpers=HELPERS.replace("FACTOR = 1.0", "FACTOR = 1000.0"))) == [
        "'FACTOR' in 'inner': 1.0 -> 1000.0"
    ]


def test_functions_that_come_and_go_are_told_by_who_uses_them(tmp_path: Path, base: Description) -> None:
    helpers = HELPERS.replace("inner(values) * 2", "values * 2")
    assert differences(base, described(tmp_path, helpers=helpers)) == [
        "'inner', a function or class that is used, is gone",
        "code of 'scaled': - return inner(values) * 2 | + return values * 2",
    ]
    back = differences(described(tmp_path / "again", helpers=helpers), base)
    assert back[0] == "'inner', a function or class that is used, is new"


def test_long_changes_are_cut_short(tmp_path: Path) -> None:
    one, other = (
        described(tmp_path / name, request_view("\n".join(f"{name}{n} = {n}" for n in range(9)) + "\nreturn {'y': x}"))
        for name in "ab"
    )
    (line,) = differences(one, other)
    assert line.endswith("(and 12 lines more)")
    (line,) = differences(Description(one.document, {}), Description(other.document, {}))
    assert line == "code of 'v': it differs"


def test_names_that_only_one_side_has_in_the_same_code(tmp_path: Path) -> None:
    one = described(tmp_path / "a", request_view("return {'y': x + m.A}", "import helpers as m"), "A = 1.0")
    other = described(tmp_path / "b", request_view("return {'y': x + m.A}", "class m:\n    A = 2.0\n"))
    found = differences(one, other)
    assert "'m' in 'v': nothing -> class m" in found
    assert "'m.A' in 'v': 1.0 -> nothing" in found


def test_kinds_entities_and_states() -> None:
    stored, request, model = (describe(view) for view in (views.route, views.planned, views.standardised))
    said = differences(stored, request)
    assert "kind: stored -> request" in said
    assert "entity: {name route, keys [[origin, bytes], [destination, bytes]]} -> nothing" in said
    with_state = model.with_state(views.STATE)
    assert differences(model, with_state) == []
    changed = model.with_state({"distance": views.STATE["distance"] + 1, "new": np.zeros(2)})
    said = differences(with_state, changed)
    assert said[0].startswith("sha256 of the state 'distance': ")
    assert said[1:] == ["state 'late' is gone", "state 'new' is new"]
