"""What holds for the tree as a whole: names, versions, sizes, and nothing half done."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions, packages_distributions, version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
)
FILES = [ROOT / name for name in LISTED.stdout.split("\0") if name and (ROOT / name).is_file()]
"""What is committed, or will be: everything git does not ignore."""
MAX_LINES, MAX_FUNCTION_LINES = 400, 60


def name_of(requirement: str) -> str:
    """The distribution a requirement names, in the one spelling that all of them have."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found.group()).lower()


PINNED = {name_of(line): line.partition("==")[2] for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line}
INSTALLED = {name_of(found.name): found.version for found in distributions()}


def sources() -> Iterator[tuple[Path, str]]:
    """Every text file that somebody wrote, without what a generator did."""
    for path in FILES:
        if path.stem.endswith(("_pb2", "_pb2_grpc")):
            continue
        try:
            yield path, path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # a picture or a model, not a text


def wrong_lines(pattern: re.Pattern[str], besides: Path | None = None) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path, text in sources()
        if path != besides
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_the_installed_distribution_is_this_one() -> None:
    assert version(PROJECT["name"]) == PROJECT["version"]


def test_every_dependency_that_is_installed_is_pinned_to_what_is_installed() -> None:
    groups = PROJECT["optional-dependencies"]
    named = {name_of(each) for group in (PROJECT["dependencies"], *groups.values()) for each in group}
    here = {name: INSTALLED[name] for name in named if name in INSTALLED}
    assert {name_of(each) for each in PROJECT["dependencies"]} <= set(here)
    # a local version, such as a build for one kind of device, is the same release
    assert {name: found.partition("+")[0] for name, found in here.items()} == {name: PINNED.get(name) for name in here}


def test_one_onnxruntime_at_most() -> None:
    """The CPU and the GPU distribution write the same files: with both, which one runs is an accident."""
    assert len({"onnxruntime", "onnxruntime-gpu"} & set(INSTALLED)) < 2


@pytest.mark.parametrize("package", ["server", "protos", "models", "loadtest", "feature_client"])
def test_nobody_else_owns_our_top_level_names(package: str) -> None:
    assert set(packages_distributions().get(package, [])) <= {PROJECT["name"]}


def test_continuous_integration_runs_what_the_readme_names() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert re.search(r"^exec make test$", script, re.MULTILINE)
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert re.search(r"^test:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


def test_no_path_of_one_machine() -> None:
    here = re.compile(r"(?<![\w.\-*$}~])/(home|root|work|Users)/|(?<![\w.\-*$}~])/tmp/\w+/")
    assert not wrong_lines(here, besides=Path(__file__))


def test_nothing_half_done() -> None:
    unfinished = re.compile(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError|xfail)\b(?!_)|\b(pytest|unittest)\.(mark\.)?skip")
    assert not wrong_lines(unfinished, besides=Path(__file__))


def own_modules() -> list[Path]:
    """Modules that people read: the generated ones are left out by `sources`."""
    return [path for path, _ in sources() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] != "tests"]


def test_files_and_functions_fit_on_a_desk() -> None:
    too_long: list[str] = []
    for path in own_modules():
        text = path.read_text("utf-8")
        if len(text.splitlines()) > MAX_LINES:
            too_long.append(f"{path.relative_to(ROOT)}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    too_long.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert len(own_modules()) > 50
    assert not too_long


def test_every_module_says_what_it_is() -> None:
    written = {path: path.read_text("utf-8") for path in own_modules()}
    assert not [str(path) for path, text in written.items() if text.strip() and not ast.get_docstring(ast.parse(text))]
