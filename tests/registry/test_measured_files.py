"""Documents beside versions: kept whole, found again, and no part of any version."""

import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from server.core.errors import RegistryError
from server.core.measured import Measured, document_name
from server.registry.lease import lease
from server.registry.manifest import ManifestFields
from server.registry.measured_files import MeasuredFiles, files_digest
from server.registry.names import MEASURED_FOLDER
from server.registry.register import register
from server.registry.source import FoundVersion, LocalDirectory

KIND = "NVIDIA H200"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with a registered version `demo:1` and a bare one `bare:2`."""
    root = tmp_path / "models"
    part = tmp_path / "part"
    part.write_bytes(b"model")
    root.mkdir()
    register(root, "demo", {"model.onnx": part, "deep/weights.bin": part}, ManifestFields())
    (root / "bare" / "2").mkdir(parents=True)
    (root / "bare" / "2" / "model.onnx").write_bytes(b"model")
    return root


def scan(root: Path, name: str = "demo") -> FoundVersion:
    (found,) = LocalDirectory(root, 1.0).scan()[name].versions.values()
    return found


def document(found: FoundVersion, **other: Any) -> Measured:
    fields: dict[str, Any] = {
        "model": found.key.model,
        "version": found.key.version,
        "measured_at": datetime(2026, 11, 21, tzinfo=UTC),
        "device_kind": KIND,
        "backend": "onnx",
        "platform": "onnxruntime_onnx",
        "files": "a" * 64,
        "settings": "b" * 64,
        "memory_bytes": 1000,
    }
    return Measured(**fields | other)


def place(root: Path, name: str, version: int, kind: str = KIND) -> Path:
    return root / name / MEASURED_FOLDER / str(version) / document_name(kind, "onnx")


@pytest.mark.parametrize("name", ["demo", "bare"])
def test_a_document_is_no_part_of_its_version(root: Path, name: str) -> None:
    folder = root / name / ("1" if name == "demo" else "2")
    os.utime(folder / "model.onnx", (1e9, 1e9))
    for each in (folder, folder / "deep"):
        if each.exists():
            os.utime(each, (1e9, 1e9))
    before = scan(root, name)
    held = lease(before.folder)
    assert MeasuredFiles().write(before, document(before))
    after = scan(root, name)
    assert after == before, "the same stamp, as old, and as large"
    assert after.settled
    LocalDirectory(root, 1.0).verify(after)
    assert list(LocalDirectory(root, 1.0).scan()) == ["bare", "demo"]
    held.release()
    assert place(root, name, before.key.version).exists()


def test_what_was_written_is_read_again_and_replaced_whole(root: Path) -> None:
    found, files = scan(root), MeasuredFiles()
    assert files.read(found, KIND, "onnx") is None
    for nbytes in (1000, 2000):
        assert files.write(found, document(found, memory_bytes=nbytes))
        assert files.read(found, KIND, "onnx") == document(found, memory_bytes=nbytes)
    assert [path.name for path in place(root, "demo", 1).parent.iterdir()] == ["NVIDIA-H200.onnx.json"]
    assert files.read(found, "NVIDIA T4", "onnx") is None
    assert files.read(found, KIND, "torch") is None
    assert files.read(scan(root, "bare"), KIND, "onnx") is None


def test_kinds_of_devices_with_one_file_name_are_not_mixed_up(root: Path) -> None:
    found, files = scan(root), MeasuredFiles()
    files.write(found, document(found))
    assert document_name("NVIDIA/H200", "onnx") == document_name(KIND, "onnx")
    assert files.read(found, "NVIDIA/H200", "onnx") is None


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[" * 100_000])
def test_what_cannot_be_understood_is_not_there(root: Path, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    found, files = scan(root), MeasuredFiles()
    files.write(found, document(found))
    place(root, "demo", 1).write_bytes(data)
    assert files.read(found, KIND, "onnx") is None
    assert list(files.all(found)) == []
    assert "cannot be used" in caplog.text
    files.write(found, document(found))
    assert files.read(found, KIND, "onnx") == document(found)


def test_a_repository_that_cannot_be_written_is_said_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    # works for root as well, whom no mode keeps out
    (root / "demo" / MEASURED_FOLDER).write_bytes(b"in the way")
    found, files = scan(root), MeasuredFiles()
    assert [files.write(found, document(found)) for _ in range(3)] == [False] * 3
    assert [record.levelname for record in caplog.records if "is not kept" in record.getMessage()] == ["DEBUG"]
    assert files.read(found, KIND, "onnx") is None
    assert list(files.all(found)) == []


@pytest.mark.parametrize("link", [MEASURED_FOLDER, f"{MEASURED_FOLDER}/1"])
def test_nothing_is_written_through_a_link(root: Path, tmp_path: Path, link: str) -> None:
    found, target = scan(root), tmp_path / "target"
    target.mkdir()
    place = root / "demo" / link
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(target)
    assert not MeasuredFiles().write(found, document(found))
    assert [path for path in target.rglob("*") if path.is_file()] == []


def test_documents_may_be_kept_elsewhere(root: Path, tmp_path: Path) -> None:
    found, beside, elsewhere = scan(root), MeasuredFiles(), MeasuredFiles(tmp_path / "kept")
    beside.write(found, document(found))
    assert elsewhere.read(found, KIND, "onnx") == document(found), "an image may bring what was measured"
    elsewhere.write(found, document(found, memory_bytes=2000))
    beside.write(found, document(found, device_kind="NVIDIA T4"))
    read = elsewhere.read(found, KIND, "onnx")
    assert read is not None
    assert read.memory_bytes == 2000
    assert beside.read(found, KIND, "onnx") == document(found)
    assert [(each.device_kind, each.memory_bytes) for each in elsewhere.all(found)] == [(KIND, 2000), ("NVIDIA T4", 1000)]
    assert (tmp_path / "kept" / "demo" / "1" / "NVIDIA-H200.onnx.json").exists()


def test_files_have_a_digest_that_their_change_changes(root: Path) -> None:
    seen = {files_digest(scan(root)), files_digest(scan(root, "bare"))}
    assert files_digest(scan(root)) in seen
    os.utime(root / "bare" / "2" / "model.onnx", (1e9, 1e9))
    seen.add(files_digest(scan(root, "bare")))
    (root / "bare" / "2" / "model.onnx").write_bytes(b"other")
    os.utime(root / "bare" / "2" / "model.onnx", (1e9, 1e9))
    assert files_digest(scan(root, "bare")) in seen, "as large and as old: a stamp tells them apart by no more than the inode"
    (root / "bare" / "2" / "model.onnx").write_bytes(b"longer")
    seen.add(files_digest(scan(root, "bare")))
    assert len(seen) == 4


def test_files_that_are_gone_have_no_digest(root: Path) -> None:
    found = scan(root, "bare")
    (root / "bare" / "2" / "model.onnx").rename(root / "model.onnx")
    (root / "bare" / "2" / "pipe").symlink_to("nowhere")
    with pytest.raises(RegistryError, match="broken link"):
        files_digest(found)
