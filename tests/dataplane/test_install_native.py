"""Building the native data plane: once per state of its sources, never in the way of who has no tools, never stale."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from server.dataplane.native import install
from server.dataplane.native.install import Outcome

BUILT = "GCC 12, nghttp2 1.52"


class Workshop:
    """An environment of its own: sources that can change, a build whose result is told, and counts of what was done."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "src" / "plan.cc"
        self.source.parent.mkdir()
        self.source.write_text("int a;")
        self.result = Outcome("installed", BUILT)
        self.missing: list[str] = []
        self.loaded: str | None = None
        self.built = self.removed = self.fetched = 0

    def build(self, tests: bool) -> Outcome:
        self.built += 1
        self.loaded = BUILT if self.result.word == "installed" else self.loaded
        return self.result

    def remove(self) -> None:
        self.removed += 1
        self.loaded = None

    def fetch(self, names: list[str]) -> None:
        self.fetched += len(names)


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    made = Workshop(tmp_path)
    monkeypatch.delenv("PODIUM_NATIVE", raising=False)
    for name, value in (("NATIVE", tmp_path), ("ROOT", tmp_path), ("STATE", tmp_path / "state.json")):
        monkeypatch.setattr(install, name, value)
    for each in (made.build, made.remove, made.fetch):
        monkeypatch.setattr(install, each.__name__, each)
    monkeypatch.setattr(install, "missing", lambda: made.missing)
    monkeypatch.setattr(install, "loaded", lambda: made.loaded)
    return made


def test_it_builds_once_per_state_of_the_sources(workshop: Workshop) -> None:
    assert [install.bring_about(False), install.bring_about(True)] == [Outcome("installed", BUILT)] * 2
    assert workshop.built == 1
    workshop.source.write_text("int b;")
    install.bring_about(False)
    workshop.source.rename(workshop.source.with_name("other.cc"))
    install.bring_about(False)
    assert workshop.built == 3


def test_what_cannot_be_loaded_any_more_is_built_again(workshop: Workshop) -> None:
    install.bring_about(False)
    workshop.loaded = None
    assert install.bring_about(False).word == "installed"
    assert workshop.built == 2


def test_a_module_of_older_sources_does_not_stay(workshop: Workshop) -> None:
    install.bring_about(False)
    workshop.source.write_text("int b")
    workshop.result = Outcome("failed", "its build failed")
    assert install.bring_about(False).word == "failed"
    assert (workshop.removed, workshop.loaded) == (1, None)


def test_what_failed_is_tried_again_when_asked_for(workshop: Workshop) -> None:
    workshop.result = Outcome("failed", "its build failed")
    install.bring_about(False)
    assert install.bring_about(False) == workshop.result
    assert workshop.built == 1
    install.bring_about(True)
    assert workshop.built == 2


def test_without_tools_it_says_which_and_looks_again_next_time(workshop: Workshop) -> None:
    workshop.missing = ["zlib"]
    outcome = install.bring_about(False)
    assert outcome == Outcome("absent", "zlib not found; on Debian: apt-get install zlib1g-dev")
    assert (workshop.built, workshop.fetched) == (0, 1)
    workshop.missing = []
    assert install.bring_about(False).word == "installed"


def test_who_wants_none_gets_none(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PODIUM_NATIVE", "no")
    assert install.bring_about(True) == Outcome("absent", "PODIUM_NATIVE=no")
    assert workshop.built == 0


@pytest.mark.parametrize(
    ("word", "statuses"), [("installed", (0, 0, 0)), ("absent", (0, 0, 1)), ("failed", (0, 1, 1))], ids=str
)
def test_only_what_was_asked_for_fails(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], word: str, statuses: tuple[int, ...]
) -> None:
    workshop.result = Outcome(word, BUILT)
    assert tuple(map(install.main, ([], ["--strict"], ["--required"]))) == statuses
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert len(set(lines)) == 1


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("compiler", "missing"),
    [
        ("cat >/dev/null", []),
        ("cat >/dev/null; echo missing: zlib; echo 'missing: OpenSSL 3 or newer'", ["OpenSSL 3 or newer", "zlib"]),
        ("exit 1", [install.COMPILER]),
    ],
)
def test_what_is_missing_is_asked_of_the_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, missing: list[str]
) -> None:
    monkeypatch.setenv("CXX", str(program(tmp_path / "c++", compiler)))
    assert install.missing() == missing


def test_no_compiler_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert install.missing() == [install.COMPILER]
    assert install.packages_of(install.missing()) == install.packages_of(install.NEEDS)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """An apt-get that writes down what it was asked, for a user that may call it."""
    program(tmp_path / "apt-get", f'echo "$@" >> {tmp_path}/asked; exit 100')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(install, "FETCHED", tmp_path / "fetched")
    log = tmp_path / "asked"
    return lambda: log.read_text("utf-8").splitlines() if log.exists() else []


def test_packages_are_asked_for_once(asked: Callable[[], list[str]]) -> None:
    install.fetch(["zlib"])
    lines = asked()
    assert [line.split()[0] for line in lines] == ["update", "install", "install"]
    assert all(line.endswith(" zlib1g-dev") for line in lines[1:])
    install.fetch(["zlib"])
    assert asked() == lines


def test_a_user_that_may_not_install_is_not_asked_to(asked: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    install.fetch(["zlib"])
    assert asked() == []


def test_images_are_told_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    install.main(["--packages"])
    install.main(["--libraries"])
    packages, libraries = capsys.readouterr().out.splitlines()
    assert {"g++", "libnghttp2-dev"} < set(packages.split())
    assert libraries.split() == list(install.SHARED_LIBRARIES)
