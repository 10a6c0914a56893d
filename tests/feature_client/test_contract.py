"""A version's contract: written whole, read without trust, and proven against what is installed."""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_client import contract, contract_files
from feature_client.contract import Contract, claim_view, read_contract, write_contract
from feature_client.contract_files import ARRAYS_FILE, DOCUMENT_FILE
from feature_client.definitions import Definitions, definitions_of
from feature_client.errors import ContractError, DefinitionError
from feature_client.feature_set import FeatureSet
from feature_client.fingerprint import Description, describe, fingerprint
from feature_client.memory_store import MemoryStore
from feature_client.schema import Array, Columns, Feature
from feature_client.view import View, feature_view
from tests.feature_client import views
from tests.feature_client.views import bytes_column
from tests.feature_client.written import BASE, HELPERS, loaded, request_view


def whole() -> FeatureSet:
    return FeatureSet(views.VIEWS, views.STATES)


def read(folder: Path) -> Contract:
    found = read_contract(folder)
    assert found is not None
    return found


def of_files(folder: Path, text: str = BASE, helpers: str = HELPERS) -> tuple[Contract, Definitions]:
    """A contract of written definitions, and these."""
    definitions = loaded(folder / "code", text, helpers)
    (folder / "version").mkdir()
    write_contract(folder / "version", FeatureSet(list(definitions.views.values())))
    return read(folder / "version"), definitions


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_contract(tmp_path) is None
    write_contract(tmp_path, whole(), ulps=2)
    assert sorted(each.name for each in tmp_path.iterdir()) == [DOCUMENT_FILE, ARRAYS_FILE]
    found = read(tmp_path)
    assert found.views == ("aircraft@2", "route@1", "planned@1", "standardised@1")
    assert found.feature_names == tuple(name for view in views.VIEWS for name in view.names)
    assert found.reads == found.feature_names
    assert found.ulps == 2
    assert found.states.keys() == {"standardised@1"}
    assert {name: array.tolist() for name, array in found.states["standardised@1"].items()} == {
        name: array.tolist() for name, array in views.STATE.items()
    }
    states = views.STATES
    assert found.fingerprints == {view.ref: fingerprint(view, states.get(view.ref)) for view in views.VIEWS}
    assert set(found.environment) == {"numpy", "python", "machine", "cpu_features"}
    found.check(definitions_of(views.VIEWS))


def test_equal_sets_give_equal_bytes_and_replace_what_was_there(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_contract(tmp_path / folder, whole())
    first = {name: (tmp_path / "a" / name).read_bytes() for name in (DOCUMENT_FILE, ARRAYS_FILE)}
    assert first == {name: (tmp_path / "b" / name).read_bytes() for name in first}
    write_contract(tmp_path / "a", FeatureSet([views.route]))
    assert read(tmp_path / "a").views == ("route@1",)
    assert len(list((tmp_path / "a").iterdir())) == 2


def test_bytes_come_back_as_they_were(tmp_path: Path) -> None:
    state = {"known": bytes_column(b"", None, "ZRÜ".encode(), b"a\x00"), "empty": bytes_column(), "weights": np.ones((2, 0))}

    @feature_view(inputs={"x": "bytes"}, features=[Feature("y", "bytes", b"", null="keep")], fit=dict)
    def view(x: Array, state: Columns) -> dict[str, Array]:
        known = set(state["known"].tolist())
        return {"y": bytes_column(*(value if value in known else b"?" for value in x.tolist()))}

    write_contract(tmp_path, FeatureSet([view], {"view@1": state}))
    found = read(tmp_path)
    assert {name: array.tolist() for name, array in found.states["view@1"].items()} == {
        "known": [b"", None, "ZRÜ".encode(), b"a\x00"],
        "empty": [],
        "weights": [[], []],
    }
    assert None in found.recorded["view@1"].outputs["y"].tolist()
    found.check(definitions_of([view]))


def test_what_cannot_be_proven_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="the model view 'standardised@1' has no state to write"):
        write_contract(tmp_path, FeatureSet(views.VIEWS))
    with pytest.raises(DefinitionError, match="the model cannot read nothing: no view has it"):
        write_contract(tmp_path, whole(), reads=["nothing"])
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        write_contract(tmp_path / "nowhere", whole())


def test_features_that_nobody_takes_are_not_used(tmp_path: Path) -> None:
    write_contract(tmp_path, whole(), reads=["delay_ratio", "tail_large", "late_z"])
    assert read(tmp_path).used() == {
        # `planned` is computed from the delay, `standardised` from the part that is late
        "aircraft@2": ("tail_delay", "tail_late", "tail_large"),
        "route@1": (),
        "planned@1": ("delay_ratio",),
        "standardised@1": ("late_z",),
    }


def test_a_changed_constant_is_named_with_the_values_it_changes(tmp_path: Path) -> None:
    recorded, definitions = of_files(tmp_path)
    recorded.check(definitions)
    changed = loaded(tmp_path / "changed", helpers=HELPERS.replace("FACTOR = 1.0", "FACTOR = 1000.0"))
    with pytest.raises(ContractError) as refused:
        recorded.check(changed)
    lines = refused.value.differences
    assert lines[0] == "tail@1: 'FACTOR' in 'inner': 1.0 -> 1000.0"
    assert lines[1].startswith("tail@1: golden values of 'ratio': ")
    assert "of 64 rows differ, most in row " in lines[1]
    assert lines[1].endswith(" ULPs)")
    assert len(lines) == 2
    assert "not what this version was made with" in str(refused.value)


def test_a_change_without_effect_on_golden_rows_is_one_all_the_same(tmp_path: Path) -> None:
    recorded, _ = of_files(tmp_path)
    with pytest.raises(ContractError) as refused:
        recorded.check(loaded(tmp_path / "changed", helpers=HELPERS.replace("values * FACTOR", "FACTOR * values")))
    assert refused.value.differences == ("tail@1: code of 'inner': - return values * FACTOR | + return FACTOR * values",)


def test_other_inputs_or_features_are_told_without_golden_rows(tmp_path: Path) -> None:
    recorded, _ = of_files(tmp_path)
    more = BASE.replace('"n": count(days(1))', '"n": count(days(1)), "m": count(days(2))').replace("tail(n, ", "tail(n, m, ")
    with pytest.raises(ContractError) as refused:
        recorded.check(loaded(tmp_path / "changed", more))
    assert "tail@1: input 'm' is new" in refused.value.differences
    assert not any("golden" in line for line in refused.value.differences)
    wider = BASE.replace('Feature("flights", "int32"', 'Feature("flights", "int64"')
    with pytest.raises(ContractError) as refused:
        recorded.check(loaded(tmp_path / "wider", wider))
    assert refused.value.differences[0] == "tail@1: type of the feature 'flights': int32 -> int64"
    renamed = BASE.replace('Feature("flights"', 'Feature("planes"').replace('{"flights": np', '{"planes": np')
    with pytest.raises(ContractError) as refused:
        recorded.check(loaded(tmp_path / "renamed", renamed))
    assert refused.value.differences[:2] == ("tail@1: feature 'flights' is gone", "tail@1: feature 'planes' is new")


def test_a_view_that_is_not_installed_is_named(tmp_path: Path) -> None:
    write_contract(tmp_path, whole())
    with pytest.raises(ContractError) as refused:
        read(tmp_path).check(definitions_of([views.planned, views.standardised, views.route]))
    assert refused.value.differences == ("aircraft@2: not installed; there is: planned@1, standardised@1, route@1",)
    with pytest.raises(ContractError, match="route@1: not installed; there is: nothing"):
        read(tmp_path).check(definitions_of([]))


def test_a_view_of_another_kind_is_told(tmp_path: Path) -> None:
    write_contract(tmp_path, FeatureSet([views.standardised], views.STATES))
    view = views.standardised

    def function(distance_mi: Array, tail_late: Array) -> dict[str, Array]:
        return {"distance_z": distance_mi, "late_z": tail_late}

    request = View(view.name, 1, "request", view.inputs, view.features, function)
    with pytest.raises(ContractError) as refused:
        read(tmp_path).check(definitions_of([request]))
    assert refused.value.differences == ("standardised@1: 'standardised@1' is no model view: it has no state",)


@feature_view(
    inputs={"x": "float64", "n": "int64"},
    features=[Feature("y", "float32", 0.0), Feature("m", "int64", 0), Feature("b", "bytes", b"")],
)
def rooted(x: Array, n: Array) -> Mapping[str, Array]:
    return {"y": np.cbrt(x).astype(np.float32), "m": n, "b": bytes_column(*(b"1" for _ in range(len(n))))}


@pytest.fixture
def drift(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes NumPy compute something else, as another release or another processor may."""
    exact = np.cbrt

    def by(factor: float) -> None:
        monkeypatch.setattr(np, "cbrt", lambda x: exact(x) * factor)

    return by


ONE_FURTHER = 1.0 + 2.0**-23
"""The next value of float32 for those at the beginning of a power of two, at most two for the others."""


def test_other_bits_from_the_same_definition_are_told_with_their_distance(
    tmp_path: Path, drift: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_contract(tmp_path, FeatureSet([rooted]))
    recorded, definitions = read(tmp_path), definitions_of([rooted])
    recorded.check(definitions)
    drift(ONE_FURTHER)
    with pytest.raises(ContractError) as refused:
        recorded.check(definitions)
    (line,) = refused.value.differences
    assert line.startswith("rooted@1: golden values of 'y': ")
    assert ", here " in line
    assert re.search(r"\([12] ULPs\)$", line)
    recorded.check(definitions, ulps=2)
    monkeypatch.setattr(contract, "environment", lambda: {"numpy": "9.9"})
    with pytest.raises(ContractError, match=r"golden values were recorded with numpy .*; here: numpy 9\.9"):
        recorded.check(definitions)
    drift(float("nan"))
    with pytest.raises(ContractError, match=r"here nan \(no number of ULPs\)"):
        recorded.check(definitions, ulps=2**60)


def test_a_bundle_may_declare_how_far_floats_may_be(tmp_path: Path, drift: Callable[[float], None]) -> None:
    write_contract(tmp_path, FeatureSet([rooted]), ulps=2)
    definitions = definitions_of([rooted])
    drift(ONE_FURTHER)
    read(tmp_path).check(definitions)
    drift(ONE_FURTHER**4)
    with pytest.raises(ContractError, match=r"golden values of 'y'"):
        read(tmp_path).check(definitions)


def test_a_function_that_fails_here_is_told(tmp_path: Path) -> None:
    recorded, _ = of_files(tmp_path, request_view("return {'y': x + K}", "K = np.arange(1)"))
    # changed in place after it was loaded, so that only running it tells
    definitions = loaded(tmp_path / "other", request_view("return {'y': x + K}", "K = np.arange(1)"))
    definitions.view("v@1").function.__globals__["K"] = np.arange(3)
    with pytest.raises(ContractError, match=r"v@1: golden rows: 'v@1' fails for all golden rows: ValueError: "):
        recorded.check(definitions)


def edited(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / DOCUMENT_FILE
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def stateless(entry: Any) -> None:
    entry["state"] = entry["description"]["state"] = None
    entry["fingerprint"] = Description(entry["description"], {}).fingerprint.hex()


BROKEN: dict[str, tuple[Callable[[Any], object], str]] = {
    "format": (lambda d: d.update(format=2), "is of format 2; this program reads 1"),
    "no views": (lambda d: d.pop("views"), "no description of features: KeyError: 'views'"),
    "views of another kind": (lambda d: d.update(views=3), "no description of features: TypeError"),
    "a view of another kind": (lambda d: d.update(views=[3]), "no description of features: TypeError"),
    "arrays of another kind": (lambda d: d.update(arrays=3), "no description of features: TypeError"),
    "no arrays": (lambda d: d.pop("arrays"), "no description of features: KeyError: 'arrays'"),
    "names": (lambda d: d["feature_names"].reverse(), "contradicts itself: its views have other features"),
    "ulps": (lambda d: d.update(ulps=-1), "contradicts itself"),
    "ulps of another kind": (lambda d: d.update(ulps="x"), "no description of features: ValueError"),
    "description": (
        lambda d: d["views"][0]["description"].update(version=9),
        "contradicts itself: 'aircraft@2' is not what its fingerprint says",
    ),
    "fingerprint": (lambda d: d["views"][0].update(fingerprint="00"), "is not what its fingerprint says"),
    "name": (lambda d: d["views"][0].update(view="other@1"), "'other@1' is not what its fingerprint says"),
    "slot": (lambda d: d["views"][3]["state"]["late"].update(array="a999"), "no description of features: KeyError: 'a999'"),
    "slots": (lambda d: d["views"][0]["golden"].update(inputs=["a1"]), "no description of features: AttributeError"),
    "inputs": (
        lambda d: d["views"][2]["golden"]["inputs"].update(speed_kn=d["views"][3]["state"]["late"]),
        "the golden inputs of 'planned@1' are no columns of equal length",
    ),
    "no golden rows": (
        lambda d: d["views"][0].update(golden={"inputs": {}, "outputs": {}}),
        "the golden rows of 'aircraft@2' are not of its inputs and features",
    ),
    "no golden outputs": (lambda d: d["views"][0]["golden"]["outputs"].popitem(), "the golden rows of 'aircraft@2' are not"),
    "no state": (lambda d: stateless(d["views"][3]), "'standardised@1' is a model view without state"),
    "a number without end": (lambda d: d.update(ulps=float("inf")), "no description of features: OverflowError"),
    "digest": (lambda d: d["arrays"].update(sha256="0"), "features.npz is not the file that features.json was written with"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_documents_are_refused(tmp_path: Path, what: str) -> None:
    write_contract(tmp_path, whole())
    change, expected = BROKEN[what]
    edited(tmp_path, change)
    with pytest.raises(ContractError) as refused:
        read_contract(tmp_path)
    assert expected in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "3", "[" * 100_000, '{"format": 1}', "\xff"])
def test_what_is_no_document_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / DOCUMENT_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(ContractError, match=r"features\.json: no description of features: "):
        read_contract(tmp_path)


def replaced(folder: Path, data: bytes) -> None:
    """Other arrays, as somebody would put them there who can also write the document."""
    (folder / ARRAYS_FILE).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    edited(folder, lambda document: document["arrays"].update(bytes=len(data), sha256=digest))


def archive(folder: Path, **arrays: Array) -> bytes:
    with (folder / "made").open("wb") as file:
        np.savez(file, allow_pickle=True, **arrays)
    return (folder / "made").read_bytes()


def test_broken_arrays_are_refused(tmp_path: Path) -> None:
    write_contract(tmp_path, whole())
    good = (tmp_path / ARRAYS_FILE).read_bytes()
    for data in (b"", b"PK", good[: len(good) // 2], b"x" * 1000):
        replaced(tmp_path, data)
        with pytest.raises(ContractError, match=r"features\.npz: no arrays: "):
            read_contract(tmp_path)
    replaced(tmp_path, archive(tmp_path, a0=np.array([{}], object)))
    with pytest.raises(ContractError, match=r"no arrays: ValueError: Object arrays cannot be loaded when allow_pickle=False"):
        read_contract(tmp_path)
    with zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a0.npy", b"\x00" * 10_000)
    replaced(tmp_path, (tmp_path / "packed").read_bytes())
    with pytest.raises(ContractError, match=r"features\.npz is compressed"):
        read_contract(tmp_path)
    (tmp_path / ARRAYS_FILE).unlink()
    with pytest.raises(ContractError, match=r"features\.npz is missing"):
        read_contract(tmp_path)


def npy(header: str) -> bytes:
    """The first bytes of a stored array."""
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


FOREIGN = {
    "a shape of any size": (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2305843009213693952,)}"), "no arrays: "),
    "a shape beyond it": (npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**70},)}}"), "no arrays: OverflowError"),
    "a header cut off": (npy("{'descr': '<f8', 'shape': (5L,\n"), "no arrays: TokenError"),
    "a header too deep": (npy("(" * 5000 + "\n"), "no arrays: "),
    "no array": (b"text", r"no arrays: '../../etc/passwd' is none"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_arrays_of_another_origin_are_refused(tmp_path: Path, what: str) -> None:
    write_contract(tmp_path, whole())
    content, expected = FOREIGN[what]
    with zipfile.ZipFile(tmp_path / ARRAYS_FILE, "a") as packed:
        packed.writestr("../../etc/passwd", content)
    replaced(tmp_path, (tmp_path / ARRAYS_FILE).read_bytes())
    with pytest.raises(ContractError, match=expected):
        read_contract(tmp_path)


def test_arrays_that_would_multiply_are_refused(tmp_path: Path) -> None:
    write_contract(tmp_path, whole())
    with zipfile.ZipFile(tmp_path / ARRAYS_FILE, "a") as packed:
        packed.filelist += packed.filelist * 9
        packed.writestr("more.npy", b"")
    replaced(tmp_path, (tmp_path / ARRAYS_FILE).read_bytes())
    with pytest.raises(ContractError, match="has the same bytes, or the same name, more than once"):
        read_contract(tmp_path)


def test_golden_rows_without_end_are_not_computed(tmp_path: Path) -> None:
    write_contract(tmp_path, FeatureSet([views.planned]))
    with np.load(tmp_path / ARRAYS_FILE) as stored:
        arrays = {name: np.resize(array, (5000, *array.shape[1:])) for name, array in stored.items()}
    replaced(tmp_path, archive(tmp_path, **arrays))
    with pytest.raises(ContractError, match="'planned@1' has 5000 golden rows; 4096 at most"):
        read_contract(tmp_path)


def test_bytes_that_point_outside_of_their_buffer_are_refused(tmp_path: Path) -> None:
    write_contract(tmp_path, whole())
    with np.load(tmp_path / ARRAYS_FILE) as stored:
        arrays = dict(stored)
    ends = next(name for name in arrays if name.endswith("_ends"))
    for wrong in (2**40, -1):
        replaced(tmp_path, archive(tmp_path, **{**arrays, ends: np.full_like(arrays[ends], wrong)}))
        with pytest.raises(ContractError, match="has ends outside of its buffer"):
            read_contract(tmp_path)
    short = {**arrays, ends: arrays[ends][1:]}
    replaced(tmp_path, archive(tmp_path, **short))
    with pytest.raises(ContractError, match="no description of features: ValueError"):
        read_contract(tmp_path)


@pytest.mark.parametrize(("name", "limit"), [(DOCUMENT_FILE, "MAX_DOCUMENT_BYTES"), (ARRAYS_FILE, "MAX_ARRAYS_BYTES")])
def test_files_of_any_size_are_not_read(tmp_path: Path, name: str, limit: str) -> None:
    write_contract(tmp_path, whole())
    os.truncate(tmp_path / name, getattr(contract_files, limit) + 1)
    with pytest.raises(ContractError, match=f"{name} has more than {getattr(contract_files, limit)} bytes"):
        read_contract(tmp_path)


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    (tmp_path / DOCUMENT_FILE).mkdir()
    with pytest.raises(ContractError, match=r"features\.json cannot be read: Is a directory"):
        read_contract(tmp_path)


def test_a_description_by_somebody_else_is_a_difference(tmp_path: Path) -> None:
    write_contract(tmp_path, FeatureSet([views.route]))

    def change(document: Any) -> None:
        entry = document["views"][0]
        entry["description"]["closure"] = 3
        entry["fingerprint"] = Description(entry["description"], {}).fingerprint.hex()

    edited(tmp_path, change)
    with pytest.raises(ContractError, match="route@1: its recorded description is none: AttributeError"):
        read(tmp_path).check(definitions_of([views.route]))

    def more(document: Any) -> None:
        entry = document["views"][0]
        entry["description"] = {**describe(views.route).document, "more": 1}
        entry["fingerprint"] = Description(entry["description"], {}).fingerprint.hex()

    edited(tmp_path, more)
    with pytest.raises(ContractError, match="route@1: the fingerprint differs"):
        read(tmp_path).check(definitions_of([views.route]))


def test_one_definition_writes_a_view() -> None:
    store = MemoryStore()
    claim_view(store, "shop", "route@1", bytes(32))
    claim_view(store, "shop", "route@1", bytes(32))
    claim_view(store, "other", "route@1", bytes([1] * 32))
    assert [store.claim_text(key, "free") for key in ("fp:shop:route@1", "fp:other:route@1")] == ["00" * 32, "01" * 32]
    with pytest.raises(ContractError, match=r"'route@1' in the project 'shop' are written by another definition") as refused:
        claim_view(store, "shop", "route@1", bytes([1] * 32))
    assert "(0101010101010101): give what has changed another version" in str(refused.value)
