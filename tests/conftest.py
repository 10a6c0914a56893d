from importlib.util import find_spec
from pathlib import Path

NATIVE = find_spec("podium_native")

# the native data plane is built where its toolchain is (`make native`); what needs the module is left out elsewhere
collect_ignore_glob = [] if NATIVE else ["*test_native_*.py"]


def pytest_report_header() -> str:
    """Says which data planes these tests speak of."""
    if NATIVE is None:
        left_out = sorted(path.name for path in Path(__file__).parent.rglob("test_native_*.py"))
        return f"native data plane: not built, left out: {', '.join(left_out)}"
    return f"native data plane: {NATIVE.origin}"
