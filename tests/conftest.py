import pytest

from tests import planes


def pytest_report_header() -> str:
    return planes.told()


# of the session, so that all tests of one kind run before the first of the other, and share its servers
@pytest.fixture(scope="session", params=planes.PLANES)
def plane(request: pytest.FixtureRequest) -> str:
    """The kind of data plane that a test's servers have."""
    kind: str = request.param
    return kind
