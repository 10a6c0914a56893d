"""Which end-to-end tests run on every kind of data plane: all that start a server, but those of this table."""

import ast
from pathlib import Path

ONE_PLANE = {
    "test_given_files.py": "files that come with a load: a call of the slow lane, and then the registry's alone",
    "test_leases.py": "files that are locked while versions serve: the registry's alone",
    "test_log_settings.py": "calls of the slow lane, which have one handler for both",
    "test_torch_programs.py": "what executes, not what is said; it trains a model first",
}
"""They run on the kind that `data_plane = "auto"` takes. What differs by kind in gRPC's own layer is in test_protocol_errors.py
(PASSED_OVER, LAX), test_attacks.py (HARMLESS, ONLY_GRPC, CROWDED) and test_stalls.py (MOST_COPIES)."""


def _without_plane(path: Path) -> list[int]:
    """The lines where a server is started on no stated plane."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    starts = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Serving"]
    return [call.lineno for call in starts if not any(each.arg == "data_plane" for each in call.keywords)]


def test_every_server_says_its_plane_or_why_not() -> None:
    files = sorted(Path(__file__).parent.glob("*.py"))
    found = {path.name for path in files if _without_plane(path)}
    assert found == set(ONE_PLANE)
