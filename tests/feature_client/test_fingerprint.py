"""A fingerprint changes with everything that decides a value, and with nothing else."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from feature_client.definitions import definitions_of
from feature_client.errors import DefinitionError
from feature_client.fingerprint import describe, fingerprint, stamp_of
from feature_client.schema import Feature
from feature_client.view import View
from tests.feature_client import views
from tests.feature_client.written import BASE, HEAD, HELPERS, loaded, request_view, written

ROOT = Path(__file__).parents[2]


def print_of(folder: Path, text: str = BASE, helpers: str = HELPERS) -> bytes:
    (found,) = loaded(folder, text, helpers).fingerprints.values()
    return found


SAME = {
    "a comment": ("# of the limit", "# of something"),
    "no comment": ("  # of the limit", ""),
    "a docstring": ('"""Of one aircraft."""', '"""Of an\n    aircraft."""'),
    "the docstring of a helper": ('"""Keep within."""', '"""Clip."""'),
    "layout": ("np.clip(values, low, high)", "(\n        np.clip(values,\n            low, high))"),
    "annotations": ("def clipped(values, low=-60.0", "def clipped(values: np.ndarray, low: float = -60.0"),
    "an annotated variable": ("    ratio = scaled", "    ratio: np.ndarray = scaled"),
    "an unused constant": ("LIMIT = 15.0", "LIMIT = 15.0\nOTHER = 7"),
    "the spelling of a constant": ("LIMIT = 15.0", "LIMIT = 1_5e0"),
    "a constant worked out": ("LIMIT = 15.0", "LIMIT = sum([7.0, 8.0])"),
    "a unit": ('unit="flights"', 'unit="1"'),
    "a column that is not used": (', "unused": "bytes"', ""),
    "another nan": ('float("nan")', "np.nan"),
    "an imported name": ("import numpy as np\n", "import numpy as np\nimport math\n"),
}
OTHER = {
    "the type of a feature": ('"flights", "int32"', '"flights", "int64"'),
    "a default": ('"int32", 0', '"int32", 1'),
    "the sign of a default": ('float("nan")', "-0.0"),
    "max_age of a feature": ("max_age_us=5)", "max_age_us=6)"),
    "max_age of the view": ("days(30)", "days(31)"),
    "a null policy": ("max_age_us=5)", 'max_age_us=5, null="keep")'),
    "a policy": ("max_age_us=days(30)", 'max_age_us=days(30), on_missing="fail"'),
    "another policy": ("max_age_us=days(30)", 'max_age_us=days(30), on_stale="fail"'),
    "a window": ("days(7)", "days(8)"),
    "an aggregation": ('mean("delay", days(7))', 'mean("delay", days(7), 1.0)'),
    "the order of inputs": (
        '"n": count(days(1)), "delay": mean("delay", days(7))',
        '"delay": mean("delay", days(7)), "n": count(days(1))',
    ),
    "the name of the log": ('EventLog("flights"', 'EventLog("departures"'),
    "the name of the entity": ('Entity("tail"', 'Entity("plane"'),
    "a created time": ('"unused": "bytes"}', '"unused": "bytes"}, created_time="event_us"'),
    "the version": ("    entity=TAIL", "    version=2,\n    entity=TAIL"),
    "a literal": ("n, 1000", "n, 1001"),
    "the type of a literal": ("n, 1000", "n, 1000.0"),
    "a constant": ("LIMIT = 15.0", "LIMIT = 15"),
    "a constant of another type": ("LIMIT = 15.0", "LIMIT = np.float32(15.0)"),
    "a default argument": ("low=-60.0", "low=-60"),
    "a keyword's default": ("high=600.0", "high=601.0"),
    "an operation": ("clipped(delay)) /", "clipped(delay)) *"),
    "another function of a package": ("np.minimum", "np.maximum"),
}
ORDER = 'features=[Feature("flights", "int32", 0, unit="flights"), Feature("ratio", "float32", float("nan"), max_age_us=5)]'


@pytest.mark.parametrize("what", SAME)
def test_what_decides_no_value_changes_nothing(tmp_path: Path, what: str) -> None:
    assert BASE.count(SAME[what][0]) >= 1
    assert print_of(tmp_path / "a") == print_of(tmp_path / "b", BASE.replace(*SAME[what]))


@pytest.mark.parametrize("what", OTHER)
def test_what_decides_a_value_changes_it(tmp_path: Path, what: str) -> None:
    assert BASE.count(OTHER[what][0]) == 1
    assert print_of(tmp_path / "a") != print_of(tmp_path / "b", BASE.replace(*OTHER[what]))


def test_the_order_of_features_counts(tmp_path: Path) -> None:
    turned = 'features=[Feature("ratio", "float32", float("nan"), max_age_us=5), Feature("flights", "int32", 0)]'
    assert print_of(tmp_path / "a") != print_of(tmp_path / "b", BASE.replace(ORDER, turned))


def test_a_constant_in_a_helper_of_a_helper_counts(tmp_path: Path) -> None:
    first = print_of(tmp_path / "a")
    assert first != print_of(tmp_path / "b", helpers=HELPERS.replace("FACTOR = 1.0", "FACTOR = 1000.0"))
    assert first != print_of(tmp_path / "c", helpers=HELPERS.replace("values * FACTOR", "FACTOR * values"))


def test_where_and_in_which_order_helpers_stand_does_not_count(tmp_path: Path) -> None:
    scaled, inner = HELPERS.split("\n\n\n")[1:]
    first = print_of(tmp_path / "a")
    assert first == print_of(tmp_path / "b", helpers=f"import numpy as np\n\n{inner}\n\n{scaled}\nFACTOR = 1.0\n")
    # in the file itself
    moved = BASE.replace("from helpers import scaled", "") + f"\nFACTOR = 1.0\n{inner}\n\n{scaled}\n"
    assert first == print_of(tmp_path / "c", moved)


def test_through_a_module_its_attributes_count(tmp_path: Path) -> None:
    text = BASE.replace("from helpers import scaled", "import helpers").replace("scaled(clip", "helpers.scaled(clip")
    first = print_of(tmp_path / "a", text)
    assert first != print_of(tmp_path / "b", text, HELPERS.replace("FACTOR = 1.0", "FACTOR = 1000.0"))
    assert first == print_of(tmp_path / "c", text, HELPERS + "\nUNUSED = 1\n")


def test_a_local_name_is_no_global_one(tmp_path: Path) -> None:
    body = """LIMIT = 1.0
def nested(FACTOR):
    return [SCALE * FACTOR for SCALE in (1.0, 2.0)][0]
return {"y": x.LIMIT if False else nested(x) * LIMIT}"""
    before = "LIMIT = open\nFACTOR = object()\nSCALE = iter(())\n"
    assert print_of(tmp_path / "a", request_view(body, before)) == print_of(tmp_path / "b", request_view(body))


def test_nested_functions_and_comprehensions_count(tmp_path: Path) -> None:
    body = """parts = [value * K for value in (lambda each: (each + J,))(x)]
def nested():
    return parts[0]
return {"y": nested()}"""
    found = {print_of(tmp_path / f"{k}{j}", request_view(body, f"K = {k}\nJ = {j}")) for k in (1.0, 2.0) for j in (1.0, 2.0)}
    assert len(found) == 4


def test_cells_of_a_closure_count(tmp_path: Path) -> None:
    before = "def made(factor):\n    def times(x):\n        return x * factor\n    return times\n\ntimes = made({})\n"
    body = 'return {"y": times(x)}'
    assert print_of(tmp_path / "a", request_view(body, before.format("2.0"))) != print_of(
        tmp_path / "b", request_view(body, before.format("3.0"))
    )


def test_an_edited_file_is_not_taken_for_what_runs(tmp_path: Path) -> None:
    path = written(tmp_path)
    definitions = loaded(tmp_path)
    view = definitions.view("tail@1")
    assert fingerprint(view) == definitions.fingerprints["tail@1"]
    path.write_text(BASE.replace("n, 1000", "n, 1001"))
    with pytest.raises(DefinitionError, match=r"has changed since 'tail' \(line \d+\) was loaded from it"):
        fingerprint(view)
    path.write_text("def tail(")
    with pytest.raises(DefinitionError, match="was never closed"):
        fingerprint(view)
    path.unlink()
    with pytest.raises(DefinitionError, match=r"cannot be read: .*No such file"):
        fingerprint(view)


def test_what_is_no_plain_function_is_refused() -> None:
    def made(function: Callable[..., object]) -> View:
        return View("v", 1, "request", {}, (Feature("y", "int8", 0),), function)  # type: ignore[arg-type] # on purpose

    with pytest.raises(DefinitionError, match="must be a plain function, not ufunc"):
        fingerprint(made(np.log))
    with pytest.raises(DefinitionError, match="cannot be a lambda"):
        fingerprint(made(lambda: {}))


def test_a_model_view_is_known_with_its_state() -> None:
    view, state = views.standardised, views.STATE
    first = fingerprint(view, state)
    assert len(first) == 32
    assert first == fingerprint(view, dict(reversed(state.items())))
    big_endian = {name: array.astype(">f8") for name, array in state.items()}
    assert first == fingerprint(view, big_endian)
    changed = {**state, "late": np.nextafter(state["late"], 1)}
    assert first != fingerprint(view, changed)
    assert first != fingerprint(view, {**state, "late": state["late"][:, None]})
    assert first != fingerprint(view, {"distance": state["distance"]})
    with pytest.raises(DefinitionError, match="has no fingerprint without its state"):
        fingerprint(view)
    with pytest.raises(DefinitionError, match="is no model view: it has no state"):
        fingerprint(views.route, state)
    with pytest.raises(DefinitionError, match="the state 'late' of 'standardised@1' is an array with an object"):
        fingerprint(view, {"late": np.array([object()])})
    assert fingerprint(view, {"v": views.bytes_column(b"a", None)}) != fingerprint(view, {"v": views.bytes_column(b"a", b"")})


def test_what_a_view_has_learnt_by_counts_only_by_its_result() -> None:
    def other(distance_mi: object, tail_late: object) -> dict[str, object]:
        return {}

    view = views.standardised
    same = View(view.name, 1, "model", view.inputs, view.features, view.function, fit=other)  # type: ignore[arg-type] # never called
    assert fingerprint(view, views.STATE) == fingerprint(same, views.STATE)


def test_a_stamp_is_the_first_eight_bytes() -> None:
    assert stamp_of(bytes(range(32))) == 0x0706050403020100


def test_every_process_finds_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, BASE.replace("LIMIT = 15.0", "LIMIT = len({b'a', b'b', 'c'}) + 0.0\nSET = {b'a', b'b', 'c'}"))
    path.write_text(path.read_text().replace("/ LIMIT", "/ LIMIT * len(SET)"))
    code = (
        "import sys; from pathlib import Path; from feature_client.definitions import load_definitions\n"
        "print(load_definitions([Path(sys.argv[1])]).fingerprints['tail@1'].hex())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code, str(path)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1
    assert HEAD in path.read_text()


def test_a_description_is_a_document_of_json() -> None:
    for view in views.VIEWS:
        document = describe(view).document
        assert json.loads(json.dumps(document)) == document
    assert list(definitions_of(views.VIEWS).fingerprints) == ["aircraft@2", "route@1", "planned@1"]


def test_an_annotation_within_a_block_changes_nothing(tmp_path: Path) -> None:
    body = "for {} in (1, 2):\n    k{} = 2.0\n    y = x * k\nreturn {{'y': y}}"
    plain, annotated = (
        print_of(tmp_path / name, request_view(body.format("i", each))) for name, each in (("a", ""), ("b", ": float"))
    )
    assert plain == annotated
