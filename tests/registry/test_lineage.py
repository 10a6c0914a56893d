"""Lineage: the whole origin of a version, with every absence named."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.versions import VersionKey
from server.registry.lineage import Ancestor, Lineage, ancestors, render, trace
from server.registry.manifest import Manifest
from server.registry.names import AliasMove, Pruned

SHA = "ab" * 32
BARE: dict[str, Any] = {
    "model": "demo",
    "version": 3,
    "created_at": "2025-03-01T10:00:00Z",
    "files": {"model.onnx": {"sha256": SHA, "bytes": 5}, "golden.npz": {"sha256": SHA, "bytes": 6}},
}
FULL: dict[str, Any] = {
    **BARE,
    "author": "ana",
    "run_id": "run-7",
    "code": {"commit": "c0ffee", "dirty": True, "repository": "git@host:demo.git"},
    "data": {"source": "flights 2013", "digest": "d1", "rows": 10, "notes": {"split": "by day"}},
    "seeds": {"numpy": 1, "torch": 2},
    "hyperparameters": {"lr": 0.1},
    "environment": {"python": "3.11", "platform": "Linux", "lock_digest": SHA, "packages": {"numpy": "2"}},
    "metrics": {"auc": 0.9},
    "recipe": {"command": "python -m train", "arguments": ["--epochs", "3"]},
    "parent": 2,
    "golden": {"file": "golden.npz", "rtol": 1e-5, "atol": 0},
}


def manifest(content: dict[str, Any], **changes: Any) -> Manifest:
    return Manifest.model_validate({**content, **changes})


def lineage(content: Manifest | None, verified: str | None = None) -> Lineage:
    manifests = {1: None, 2: manifest(BARE, version=2, parent=1), 3: content}
    files = content.files if content is not None else {}
    return trace(VersionKey("demo", 3), "models/demo/3", manifests, {"champion": 3, "blue": 3, "old": 1}, verified, files)


def test_a_complete_version() -> None:
    assert render(lineage(manifest(FULL))).splitlines() == [
        "model            demo:3",
        "aliases          blue, champion",
        "status           champion",
        "folder           models/demo/3",
        "verified         yes, every file has the digest of its manifest",
        "created          2025-03-01T10:00:00+00:00",
        "author           ana",
        "run              run-7",
        "code             c0ffee with uncommitted changes",
        "repository       git@host:demo.git",
        "data             flights 2013  10 rows  digest d1",
        "                 split: by day",
        "environment      Python 3.11 on Linux",
        f"                 lock sha256 {SHA}",
        "packages         numpy=2",
        "recipe           python -m train --epochs 3",
        "seeds            numpy=1  torch=2",
        "hyperparameters  lr=0.1",
        "metrics          auc=0.9",
        "golden           golden.npz  rtol 1e-05  atol 0",
        "parents          2 <- 1 (not in the repository, or without manifest)",
        f"file             model.onnx  5 bytes  sha256 {SHA}",
        f"                 golden.npz  6 bytes  sha256 {SHA}",
        "missing          uncommitted changes on top of commit c0ffee",
    ]


def test_nothing_missing_is_said_as_well() -> None:
    text = render(lineage(manifest(FULL, code={"commit": "c0ffee", "dirty": False})))
    assert "missing          nothing: it can be rebuilt from the above" in text
    assert "code             c0ffee\n" in text
    assert not [line for line in text.splitlines() if line.startswith("repository")]


def test_every_absence_is_named() -> None:
    found = lineage(manifest(BARE))
    text = render(found)
    for what in ("author", "run", "code", "data", "environment", "recipe", "seeds", "hyperparameters", "metrics"):
        assert any(line.split() == [what, "not", "recorded"] for line in text.splitlines()), what
    assert "parents          none" in text
    assert "golden           none" in text
    assert len(found.missing) == 6
    partial = render(lineage(manifest(BARE, data={"source": "flights"}, environment={"python": "3.11", "platform": "Linux"})))
    assert "flights  digest not recorded" in partial
    assert "lock sha256 not recorded" in partial
    assert "packages" not in partial


def test_a_bare_version_cannot_be_rebuilt_or_verified() -> None:
    found = lineage(None)
    text = render(found)
    assert found.missing == ("everything: the version has no manifest",)
    assert "cannot be: no manifest says what the files should be" in text
    assert trace(VersionKey("demo", 1), "f", {}, {}, None, {}).aliases == ()
    assert "aliases   none" in render(trace(VersionKey("demo", 1), "f", {}, {}, None, {}))


def test_only_moves_of_this_version_belong_to_it() -> None:
    history = [
        AliasMove(at=datetime(2026, 11, day, tzinfo=UTC), who="ann", alias="champion", before=before, after=after)
        for day, before, after in ((1, None, 1), (2, 1, 3), (3, 3, None), (4, None, 1))
    ]
    found = trace(VersionKey("demo", 3), "f", {}, {}, None, {}, history)
    assert found.moves == tuple(history[1:3])
    assert "moved     2026-11-02T00:00:00+00:00  champion: 1 -> 3  by ann" in render(found)
    assert "champion: 3 -> nothing  by ann" in render(found)


def test_what_does_not_verify_says_so() -> None:
    assert "verified         NO: demo:3: model.onnx is missing" in render(
        lineage(manifest(FULL), "demo:3: model.onnx is missing")
    )


def test_the_document_reads_back() -> None:
    for content in (manifest(FULL), manifest(BARE), None):
        found = lineage(content)
        assert Lineage.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(("parent", "known"), [(2, True), (9, False)])
def test_a_parent_is_known_by_its_manifest(parent: int, known: bool) -> None:
    manifests = {2: manifest(BARE, version=2), 3: manifest(BARE, parent=parent)}
    assert ancestors(3, manifests) == (Ancestor(version=parent, known=known),)


def test_the_chain_goes_on_behind_what_was_pruned() -> None:
    manifests: dict[int, Manifest | None] = {
        1: manifest(BARE, version=1),
        3: manifest(BARE, parent=2),
        4: manifest(BARE, version=4, parent=3),
    }
    removed = Pruned(at=datetime(2026, 11, 2, tzinfo=UTC), who="ann", version=2, parent=1)
    # announced, and cut off before it was done: the version is there
    announced = Pruned(at=datetime(2026, 11, 3, tzinfo=UTC), who="bob", version=3, parent=2)
    pruned = {2: removed, 3: announced}
    assert ancestors(4, manifests, pruned) == (
        Ancestor(version=3, known=True),
        Ancestor(version=2, known=False, pruned=removed),
        Ancestor(version=1, known=True),
    )
    found = trace(VersionKey("demo", 4), "f", manifests, {}, None, {}, (), pruned)
    assert "3 <- 2 (pruned 2026-11-02T00:00:00+00:00 by ann) <- 1\n" in render(found)
    assert Lineage.model_validate_json(found.model_dump_json()) == found


def test_the_status_says_since_when_and_by_whom() -> None:
    history = [AliasMove(at=datetime(2026, 11, 1, tzinfo=UTC), who="ann", alias="champion", before=None, after=3)]
    found = trace(VersionKey("demo", 3), "f", {3: manifest(FULL)}, {"champion": 3}, None, {}, history)
    assert any(
        line.split() == ["status", "champion", "since", "2026-11-01T00:00:00+00:00", "by", "ann"]
        for line in render(found).splitlines()
    )


@given(st.dictionaries(st.integers(1, 6), st.integers(1, 6)))
def test_the_chain_always_ends_and_repeats_nobody(parents: dict[int, int]) -> None:
    manifests: dict[int, Manifest | None] = {
        version: manifest(BARE, version=version, parent=parent) for version, parent in parents.items() if parent != version
    }
    for version in range(1, 7):
        chain = [each.version for each in ancestors(version, manifests)]
        assert len({version, *chain}) == len(chain) + 1
