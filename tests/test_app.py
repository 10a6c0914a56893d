from pathlib import Path

import pytest

from server import app
from server.backends.base import LoadTask
from server.core.errors import LoadFailed
from server.core.settings import ModelSettings
from server.core.versions import VersionKey


def task(folder: Path) -> LoadTask:
    return LoadTask(VersionKey("m", 1), folder, ModelSettings())


def test_two_onnxruntimes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LoadFailed, match="onnxruntime and onnxruntime-gpu are both installed"):
        app.backend_factory("onnx")(task(tmp_path))


def test_a_backend_that_is_not_installed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(app._BACKENDS, "onnx", "server.backends.there_is_no_such_file")
    with pytest.raises(LoadFailed, match="backend 'onnx' is not installed here: No module named"):
        app.backend_factory("onnx")(task(tmp_path))
