"""Fail unless every file that calls itself pure was covered by the tests to its last branch.

Runs after `coverage run -m pytest`, over the folders that `[tool.coverage.run] source` names. A pure file needs no thread,
socket or disk to be reached, so there is no excuse for a branch nobody has seen. Server processes that tests start are not
measured: what only they reach does not count.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from coverage import Coverage

ROOT = Path(__file__).parents[1]
_MARK = re.compile(r"\bPure(?=[.:*]| over\b)")
"""`**Pure.**`, `**Pure**: why`, `Pure: why` and `**Pure** over its arguments`; not `Pure files`, which speaks of others."""


def is_pure(path: Path) -> bool:
    """Whether the module docstring of a file says that it is pure."""
    return bool(_MARK.search(ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""))


def pure_files(root: Path, folders: list[str]) -> Iterator[Path]:
    """Every pure file below the folders, in order."""
    for folder in folders:
        yield from (path for path in sorted((root / folder).rglob("*.py")) if is_pure(path))


def gap(coverage: Coverage, path: Path) -> str:
    """What no test has reached in one file: "" if nothing, else its lines, and the lines some of whose branches never ran."""
    _, _, _, lines, formatted = coverage.analysis2(str(path))
    halves = [line for line, (exits, taken) in sorted(coverage.branch_stats(str(path)).items()) if taken < exits]
    partly = ", ".join(str(line) for line in halves if line not in lines)
    return "; ".join(part for part in (formatted and f"lines {formatted}", partly and f"branches at {partly}") if part)


def main(root: Path = ROOT) -> int:
    """Print every gap and one line in summary. The exit status: 0 when there are pure files, and none has a gap."""
    coverage = Coverage(data_file=str(root / ".coverage"), config_file=str(root / "pyproject.toml"))
    coverage.load()
    files = list(pure_files(root, coverage.get_option("run:source")))  # type: ignore[arg-type]  # a list for this option
    gaps = {path: missing for path in files if (missing := gap(coverage, path))}
    for path, missing in gaps.items():
        print(f"{path.relative_to(root)}: never reached: {missing}")
    print(f"pure files: {len(files)}, of which {len(files) - len(gaps)} are covered to the last branch")
    return 0 if files and not gaps else 1


if __name__ == "__main__":
    sys.exit(main())
