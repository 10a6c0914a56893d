import json
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.core.errors import InvalidRequest, LoadFailed
from server.core.settings import ModelSettings
from server.registry.given import give
from server.registry.source import LocalDirectory


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary folders go; empty again at the end of every test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def test_given_files_are_a_model(temporary: Path) -> None:
    given = give("m", {"1/model.onnx": b"abc", "1/weights/first": b"", "12/model.onnx": b"d"})
    (folder,) = temporary.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    model = given.found
    assert (model.name, model.settings, model.aliases, model.problem) == ("m", ModelSettings(), {}, None)
    assert sorted(model.versions) == [1, 12]
    found = model.versions[1]
    assert found.settled
    assert found.folder.is_relative_to(folder)
    assert (found.folder / "model.onnx").read_bytes() == b"abc"
    assert (found.folder / "weights" / "first").read_bytes() == b""
    # it has promised nothing, so a repository's own check has nothing against it
    LocalDirectory(temporary / "elsewhere", 0).verify(found)
    given.close()
    assert not folder.exists()
    given.close()


def test_the_same_files_given_twice_are_two_models(temporary: Path) -> None:
    first, second = (give("m", {"1/model.onnx": b"abc"}) for _ in range(2))
    assert first.found.versions[1].stamp != second.found.versions[1].stamp
    first.close()
    assert second.found.versions[1].folder.exists()
    second.close()


@pytest.mark.parametrize(
    "path",
    ["../1/x", "1/../../x", "1/..", "/1/x", "//x", "1//x", "1/", "", "1/./x", "./1/x", "1/a\\b", "..\\1\\x", "1/a\0b", "1\0/a"],
)
def test_paths_that_could_lead_elsewhere_are_refused(temporary: Path, path: str) -> None:
    with pytest.raises(
        InvalidRequest, match=r"^Invalid file parameter 'file:.* must stay within model directory.*path traversal"
    ):
        give("m", {"1/model.onnx": b"abc", path: b"x"})


@pytest.mark.parametrize("path", ["model.onnx", "0/model.onnx", "01/model.onnx", "-1/x", "x/model.onnx", "model.toml", "1"])
def test_paths_of_no_version_are_refused(temporary: Path, path: str) -> None:
    with pytest.raises(InvalidRequest, match="expected 'file:<version>/<file>'"):
        give("m", {path: b"x"})


def test_a_file_is_no_folder(temporary: Path) -> None:
    for files in ({"1/a": b"", "1/a/b/c": b""}, {"1/a/b/c": b"", "1/a": b""}):
        with pytest.raises(
            InvalidRequest, match=r"^Invalid file parameter 'file:1/a/b/c', directory has been created as a file$"
        ):
            give("m", files)


def test_files_that_no_version_can_be_made_of_are_refused(temporary: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"^the files given for m:1 are no version: holds no files$"):
        give("m", {"1/.hidden": b"x"})
    with pytest.raises(InvalidRequest, match=r"m:1 are no version: .*manifest\.json"):
        give("m", {"1/manifest.json": json.dumps({"schema_version": 1}).encode()})


def test_files_that_cannot_be_written_leave_nothing(temporary: Path) -> None:
    with pytest.raises(LoadFailed, match=r"^failed to load 'm', the given files cannot be written: File name too long$"):
        give("m", {"1/model.onnx": b"abc", f"1/{'x' * 300}": b""})
