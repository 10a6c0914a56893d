"""Definition files are executed once, under names of their own, and say where they are wrong."""

import inspect
import sys
import types
from pathlib import Path

import hypothesis
import pytest

from feature_client.definitions import definitions_of, load_definitions
from feature_client.errors import DefinitionError
from feature_client.fingerprint import fingerprint
from tests.feature_client import views
from tests.feature_client.written import BASE, HEAD, HELPERS, loaded, request_view, written


def test_views_are_found_by_reference_in_their_order(tmp_path: Path) -> None:
    text = BASE + '\n\n@feature_view(inputs={"x": "int8"}, version=3, features=[Feature("y", "int8", 0)])\n'
    definitions = loaded(tmp_path, text + "def plain(x):\n    return {'y': x}\n\nalias = plain\n")
    assert list(definitions.views) == ["tail@1", "plain@3"]
    assert definitions.fingerprints.keys() == definitions.views.keys()
    assert definitions.view("plain@3").names == ("y",)
    with pytest.raises(DefinitionError, match=r"no view 'tail@2' in the definitions; they have: tail@1, plain@3"):
        definitions.view("tail@2")


def test_model_views_have_a_fingerprint_with_their_state_only() -> None:
    definitions = definitions_of([*views.VIEWS, views.route])
    assert list(definitions.views) == ["aircraft@2", "route@1", "planned@1", "standardised@1"]
    assert "standardised@1" not in definitions.fingerprints
    assert definitions.description("standardised@1").document["state"] is None
    assert len(definitions.description("standardised@1", views.STATE).fingerprint) == 32
    assert load_definitions([]).views == {}


def test_nothing_of_a_load_stays_under_its_plain_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = types.ModuleType("helpers")
    monkeypatch.setitem(sys.modules, "helpers", mine)
    path, finders = list(sys.path), list(sys.meta_path)
    definitions = load_definitions([written(tmp_path / "a"), written(tmp_path / "b", BASE.replace("def tail", "def other"))])
    assert sys.modules["helpers"] is mine
    assert "features" not in sys.modules
    assert (sys.path, sys.meta_path) == (path, finders)
    # each folder had its own helpers, and both files stay inspectable
    sources = [inspect.getsource(view.function) for view in definitions.views.values()]
    assert "def tail(" in sources[0]
    assert "def other(" in sources[1]
    assert not list(tmp_path.rglob("__pycache__"))


def test_two_folders_may_have_helpers_of_one_name(tmp_path: Path) -> None:
    other = written(tmp_path / "b", BASE.replace("def tail", "def other"), HELPERS.replace("FACTOR = 1.0", "FACTOR = 3.0"))
    third = tmp_path / "a" / "third.py"
    first = written(tmp_path / "a")
    third.write_text(BASE.replace("def tail", "def third"))
    definitions = load_definitions([first, other, third])
    factors = [
        definitions.descriptions[f"{name}@1"].document["closure"]["inner"]["names"]["FACTOR"]
        for name in ("tail", "other", "third")
    ]
    assert factors == ["1.0", "3.0", "1.0"]


def test_a_view_is_the_same_after_its_helpers_have_left(tmp_path: Path) -> None:
    """Beside an installed package of their name, which has it again by then."""
    (tmp_path / "hypothesis.py").write_text("class Limits:\n    HIGH = 2.0\n")
    path = tmp_path / "features.py"
    path.write_text(request_view("return {'y': x * Limits.HIGH}", "from hypothesis import Limits"))
    definitions = load_definitions([path])
    assert sys.modules["hypothesis"] is hypothesis
    assert fingerprint(definitions.view("v@1")) == definitions.fingerprints["v@1"]


def test_a_file_edited_within_a_second_is_read_again(tmp_path: Path) -> None:
    for factor in ("1.0", "2.0", "3.0"):
        definitions = loaded(tmp_path, helpers=HELPERS.replace("FACTOR = 1.0", f"FACTOR = {factor}"))
        assert definitions.descriptions["tail@1"].document["closure"]["inner"]["names"]["FACTOR"] == factor


@pytest.mark.parametrize("order", [("features.py", "more.py"), ("more.py", "features.py")])
def test_a_file_may_import_a_view_of_another(tmp_path: Path, order: tuple[str, str]) -> None:
    written(tmp_path)
    written(tmp_path, request_view("return {'y': x + LIMIT}", "from features import LIMIT, tail"), name="more.py")
    definitions = load_definitions([tmp_path / name for name in order])
    assert set(definitions.views) == {"tail@1", "v@1"}


def test_a_package_beside_the_file_belongs_to_it(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").write_text("")
    (tmp_path / "parts" / "scale.py").write_text("SCALE = 2.0\n\ndef scaled(x):\n    return x * SCALE\n")
    text = request_view("return {'y': parts.scale.scaled(x)}", "import parts.scale")
    first = loaded(tmp_path, text).fingerprints["v@1"]
    assert set(loaded(tmp_path, text).descriptions["v@1"].document["closure"]) == {"v", "scaled"}
    (tmp_path / "parts" / "scale.py").write_text("SCALE = 4.0\n\ndef scaled(x):\n    return x * SCALE\n")
    assert loaded(tmp_path, text).fingerprints["v@1"] != first
    assert "parts" not in sys.modules


def test_a_folder_without_init_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_parts" / "inner").mkdir(parents=True)
    (tmp_path / "shop_parts" / "inner" / "scale.py").write_text("def scaled(x):\n    return x * 2.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = request_view("return {'y': shop_parts.inner.scale.scaled(x)}", "import shop_parts.inner.scale")
    try:
        closure = loaded(tmp_path / "code", text).descriptions["v@1"].document["closure"]
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "shop_parts"]:
            del sys.modules[name]
    assert set(closure) == {"v", "scaled"}


def test_an_installed_package_is_known_by_name_and_its_own_definitions_are_not(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    text = BASE.replace("from helpers import scaled", "from shop.helpers import scaled")
    (site / "shop").mkdir(parents=True)
    (site / "shop" / "__init__.py").write_text("")
    path = written(site / "shop", text)
    (tmp_path / "apart").mkdir()
    sys.path.insert(0, str(site))
    try:
        inside = load_definitions([path]).descriptions["tail@1"].document["closure"]
        outside = load_definitions([written(tmp_path / "apart", text)]).descriptions["tail@1"].document["closure"]
    finally:
        sys.path.remove(str(site))
        for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
            del sys.modules[name]
    assert set(inside) == {"tail", "clipped", "scaled", "inner"}
    assert outside["tail"]["names"]["scaled"] == "shop.helpers.scaled"
    assert set(outside) == {"tail", "clipped"}


def test_two_views_of_one_reference_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match=r"two views are called 'tail@1': .*a/features.py:\d+ and .*b/features.py:\d+"):
        load_definitions([written(tmp_path / "a"), written(tmp_path / "b")])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\ny = x / 0\n", r"features\.py:2: ZeroDivisionError: division by zero"),
        ("def f(:\n", r"features\.py:1: SyntaxError: invalid syntax"),
        ("import nowhere_at_all\n", r"features\.py:1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("raise SystemExit(3)\n", r"features\.py:1: SystemExit: 3"),
        ("from helpers import boom\nboom()\n", r"helpers\.py:2: KeyError: 'a'"),
        (HEAD + 'Feature("1", "int8", 0)\n', r"features\.py:\d+: '1' cannot be the name of a feature"),
    ],
)
def test_an_error_in_a_file_names_its_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(DefinitionError, match=expected):
        loaded(tmp_path, text, "def boom():\n    {}['a']\n")
    assert "helpers" not in sys.modules


def test_an_error_in_a_file_beside_it_names_that_file(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match=r"helpers\.py:1: SyntaxError: "):
        loaded(tmp_path, "import helpers\n", "def f(:\n")


def test_what_is_no_python_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("x")
    for name in ("text.txt", "missing.py", "."):
        with pytest.raises(DefinitionError, match="are no Python file"):
            load_definitions([tmp_path / name])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return {'y': x - x.mean()}", "'y' of 'v@1' depends on which rows are computed together: golden row"),
        ("return {'y': np.cumsum(np.where(np.isfinite(x), 1.0, 0.0))}", "depends on which rows are computed together"),
        ("return {'y': np.where(np.arange(len(x)) == 0, 1.0, 0.0)}", "depends on which rows are computed together"),
        ("return {'y': np.random.random(len(x))}", "depends on which rows are computed together"),
        ("return {'y': x.astype(str)}", "must be float64, not <U32"),
        ("return {'z': x}", "'v@1' must give exactly y; it gave z"),
        ("return {'y': x / (None if np.isnan(x).any() else 1)}", r"'v@1' fails for all golden rows: TypeError: "),
    ],
)
def test_a_function_that_cannot_serve_is_refused(tmp_path: Path, body: str, expected: str) -> None:
    with pytest.raises(DefinitionError, match=expected):
        loaded(tmp_path, request_view(body))
