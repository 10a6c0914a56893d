"""The tests that are written in C++, of what needs no interpreter; `make test` builds them beside the module."""

import subprocess
from pathlib import Path

UNITS = Path(__file__).parents[2] / "build" / "native" / "tests" / "units" / "podium_unit"


def test_every_unit_test_passes() -> None:
    run = subprocess.run([UNITS], capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
