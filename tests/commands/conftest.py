from pathlib import Path

import pytest

from tests.commands.shell import Shell


@pytest.fixture
def podium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    Path("trained.onnx").write_bytes(b"model" * 1000)
    return Shell(capsys)
