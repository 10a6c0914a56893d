"""`baseline.json` of a version's folder, as a loader reads it."""

from pathlib import Path

import numpy as np
import pytest

from server import optional
from server.core.errors import LoadFailed
from server.core.settings import ModelSettings
from server.monitoring.baseline_document import to_document
from server.monitoring.build import build
from server.optional import read_baseline
from tests.monitoring.plain_rows import rows_of


def test_it_is_read_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_baseline(tmp_path) is None
    made = build(rows_of({"x": np.ones((3, 1))}), ModelSettings())
    (tmp_path / "baseline.json").write_bytes(to_document(made))
    found = read_baseline(tmp_path)
    assert found is not None
    assert (found.streams, found.counts.tolist()) == (made.streams, made.counts.tolist())
    (tmp_path / "baseline.json").write_bytes(b'{"format":1}')
    with pytest.raises(LoadFailed, match=r"^baseline\.json: the document: missing or unknown: counts"):
        read_baseline(tmp_path)
    monkeypatch.setattr(optional, "MAX_BYTES", 3)
    with pytest.raises(LoadFailed, match=r"^baseline\.json: "):
        read_baseline(tmp_path)
