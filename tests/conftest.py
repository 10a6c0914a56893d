from importlib.util import find_spec
from pathlib import Path

import pytest

from server.dataplane.native.install import compiler
from tests import planes

# the native data plane is built where its toolchain is (`make native`); what needs the module is left out elsewhere, and
# where there is no compiler at all, what needs the double of CUDA's library
collect_ignore_glob = [] if find_spec("podium_native") else ["*test_native_*.py"]
collect_ignore_glob += [] if compiler() else ["*test_cuda_*.py"]


def pytest_report_header() -> list[str]:
    """Says which data planes these tests speak of."""
    said = [planes.told()]
    if collect_ignore_glob:
        left_out = sorted(path.name for path in Path(__file__).parent.rglob("test_native_*.py"))
        said.append(f"left out: {', '.join(left_out)}")
    return said


# of the session, so that all tests of one kind run before the first of the other, and share its servers
@pytest.fixture(scope="session", params=planes.PLANES)
def plane(request: pytest.FixtureRequest) -> str:
    """The kind of data plane that a test's servers have."""
    kind: str = request.param
    return kind
