"""Which data plane serves, and what is said where the one that was asked for is not there."""

import logging
from pathlib import Path

import pytest

from server import optional, process
from server.core.errors import Unsupported
from server.core.settings import ServerSettings

MISSING = "server.dataplane.native.there_is_no_such_file"
HERE = "server.dataplane.python.plane"


@pytest.mark.parametrize(
    ("wanted", "module", "kind", "why"),
    [
        ("python", HERE, "python", "it was asked for"),
        ("python", MISSING, "python", "it was asked for"),
        ("auto", HERE, "native", "it is part of this installation"),
        ("native", HERE, "native", "it was asked for"),
        ("auto", MISSING, "python", f"the native one is not part of this installation: No module named '{MISSING}'"),
    ],
)
def test_what_is_chosen_and_why(monkeypatch: pytest.MonkeyPatch, wanted: str, module: str, kind: str, why: str) -> None:
    monkeypatch.setattr(optional, "_NATIVE_PLANE", module)
    settings = ServerSettings.model_validate({"repository": "r", "data_plane": wanted})
    assert optional.choose_plane(settings.data_plane) == (kind, why)


def test_a_native_plane_that_is_not_there_is_missed_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(optional, "_NATIVE_PLANE", MISSING)
    with pytest.raises(Unsupported, match="use --data-plane python, or auto"):
        optional.choose_plane("native")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        assert process.serve(ServerSettings(repository=str(tmp_path), data_plane="native")) == 1
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    told = capsys.readouterr().err
    assert told.startswith("podium serve: data_plane: the native one is not part of this installation")
