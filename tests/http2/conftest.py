import os
from pathlib import Path

BUILT = Path(__file__).parents[2] / "build" / "native" / "tests" / "podium_echo"
"""Where a build with PODIUM_TESTS=ON puts it; PODIUM_ECHO is the path of another one, such as one with sanitizers."""

ECHO = Path(os.environ.get("PODIUM_ECHO", BUILT))

collect_ignore = [] if ECHO.is_file() else ["test_echo.py"]
