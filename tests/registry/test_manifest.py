"""The manifest: reads back what was written, refuses what it does not know, and names what is missing."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from server.core.errors import RegistryError
from server.registry.manifest import (
    FileDigest,
    Manifest,
    faults,
    manifest_bytes,
    missing_to_rebuild,
    parse_fields,
    parse_manifest,
    path_fault,
)

SHA = "ab" * 32
COMPLETE: dict[str, Any] = {
    "schema_version": 1,
    "model": "demo",
    "version": 2,
    "created_at": "2025-03-01T10:00:00Z",
    "author": "ana",
    "run_id": "run-7",
    "files": {"model.onnx": {"sha256": SHA, "bytes": 5}, "golden.npz": {"sha256": SHA, "bytes": 6}},
    "code": {"commit": "c0ffee", "dirty": False, "repository": "git@host:demo.git"},
    "data": {"source": "flights 2013", "digest": "sha256:1", "rows": 10, "notes": {"split": "by day"}},
    "seeds": {"numpy": 1},
    "hyperparameters": {"lr": 0.1, "layers": [8, 4], "name": "x", "nested": {"a": None}},
    "environment": {"python": "3.11", "platform": "Linux", "lock_digest": SHA, "packages": {"numpy": "2"}},
    "metrics": {"auc": 0.9},
    "recipe": {"command": "python -m train", "arguments": ["--epochs", "3"]},
    "parent": 1,
    "golden": {"file": "golden.npz", "rtol": 1e-5, "atol": 0},
}


def manifest(**changes: Any) -> Manifest:
    return Manifest.model_validate({**COMPLETE, **changes})


def test_it_reads_back_as_it_was_written() -> None:
    assert parse_manifest(manifest_bytes(manifest())) == manifest()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(), json_values, max_size=4), st.dictionaries(st.text(), st.integers(), max_size=3))
def test_any_hyperparameters_read_back(hyperparameters: dict[str, Any], seeds: dict[str, int]) -> None:
    written = manifest(hyperparameters=hyperparameters, seeds=seeds)
    assert parse_manifest(manifest_bytes(written)) == written


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"colour": 1}, "colour: unknown key"),
        ({"code": {"commit": "a", "dirty": False, "branch": "x"}}, "code.branch: unknown key"),
        ({"schema_version": 2}, "schema_version"),
        ({"version": 0}, "version"),
        ({"version": True}, "version"),
        ({"files": {}}, "files"),
        ({"files": {"model.onnx": {"sha256": "xyz", "bytes": 5}}}, "sha256"),
        ({"files": {"../x": {"sha256": SHA, "bytes": 5}}, "golden": None}, "leads upwards"),
        ({"golden": {"file": "other.npz", "rtol": 0, "atol": 0}}, "not among the files"),
        ({"derived": ["baseline.json"]}, "derived file 'baseline.json' is not among the files"),
        ({"derived": ["golden.npz"]}, "derived.0"),
        ({"golden": {"file": "golden.npz", "rtol": -1, "atol": 0}}, "golden.rtol"),
        ({"parent": 2}, "its own parent"),
        ({"created_at": "2025-03-01T10:00:00"}, "created_at"),
    ],
)
def test_what_is_refused_is_named(change: dict[str, Any], text: str) -> None:
    data = json.dumps({**COMPLETE, **change}).encode()
    with pytest.raises(RegistryError, match=r"^manifest\.json: ") as raised:
        parse_manifest(data)
    assert text in str(raised.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(RegistryError, match=r"^manifest\.json: "):
        parse_manifest(data)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_cannot_write_are_refused(number: float) -> None:
    with pytest.raises(ValidationError, match="JSON cannot write"):
        manifest(hyperparameters={"a": [{"b": number}]})
    with pytest.raises(ValidationError, match="finite"):
        manifest(metrics={"loss": number})


def test_fields_are_the_part_that_the_caller_brings() -> None:
    fields = parse_fields(b'{"author": "ana", "seeds": {"numpy": 3}, "parent": 4}')
    assert (fields.author, fields.seeds, fields.parent, fields.code) == ("ana", {"numpy": 3}, 4, None)
    with pytest.raises(RegistryError, match="manifest fields: version: unknown key"):
        parse_fields(b'{"version": 3}')


def test_it_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        manifest().version = 3  # type: ignore[misc] # that it fails is what is tested


def test_faults_of_the_document_itself_have_no_path() -> None:
    with pytest.raises(ValidationError) as raised:
        FileDigest.model_validate("x")
    assert faults(raised.value).startswith("Input should be")


@pytest.mark.parametrize("path", ["model.onnx", "a/b.bin", "a b", "é", "manifest.json.old"])
def test_plain_paths(path: str) -> None:
    assert path_fault(path) is None


@pytest.mark.parametrize(
    "path", ["", ".", "..", "../a", "a/../b", "/a", "a//b", "a/", "./a", ".hidden", "a/.b", "a\\b", "a\0", "manifest.json"]
)
def test_paths_that_no_version_may_hold(path: str) -> None:
    assert path_fault(path) is not None


def test_nothing_is_missing_from_a_complete_manifest() -> None:
    assert missing_to_rebuild(manifest()) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"code": None}, "code commit"),
        ({"code": {"commit": "c0ffee", "dirty": True}}, "uncommitted changes on top of commit c0ffee"),
        ({"data": None}, "training data source and digest"),
        ({"data": {"source": "flights"}}, "training data digest"),
        ({"seeds": {}}, "seeds"),
        ({"hyperparameters": {}}, "hyperparameters"),
        ({"environment": None}, "environment"),
        ({"environment": {"python": "3.11", "platform": "Linux"}}, "environment lock digest"),
        ({"recipe": None}, "recipe and its arguments"),
    ],
)
def test_each_absence_is_named_alone(change: dict[str, Any], text: str) -> None:
    assert missing_to_rebuild(manifest(**change)) == [text]
