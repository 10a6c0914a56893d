"""A Dockerfile's own lines, run without Docker: its paths below a scratch root, the distribution's packages taken as there.

As much of the language as Dockerfile.gpu uses; a line that is not understood is an error, so that nothing is left out unseen.
Commands are those of the file: none is repeated here.
"""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
_ELSEWHERE = re.compile(r"(?<![\w./$}~*])/(?=(?:srv|var|opt|home|root)\b)")
"""Paths of an image that must not be this machine's; /usr, /bin, /tmp and /dev are."""
_RUN_S = 900


@dataclass
class Stage:
    """From one FROM to the next."""

    base: str
    name: str
    lines: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        """What follows each of one kind of instruction."""
        return [rest for found, rest in self.lines if found == word]


def stages(text: str) -> list[Stage]:
    """The stages of a Dockerfile."""
    made: list[Stage] = []
    for word, rest in instructions(text):
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            made.append(Stage(base, name or str(len(made))))
        elif made:
            made[-1].lines.append((word, rest))
        else:
            assert word == "ARG", f"{word} before the first FROM"
    return made


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction with what follows it; comments are gone, continued lines are one, a quoted line break stays."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        yield word, rest.strip()


def words_of(rest: str) -> list[str]:
    """An instruction in its JSON form."""
    words: list[str] = json.loads(rest)
    return words


class Scratch:
    """A folder that stands for `/` of the stages, one after the other: what is copied between them keeps its path."""

    def __init__(self, folder: Path, arguments: dict[str, str]) -> None:
        self.root = folder / "root"
        self.apt_log = folder / "apt.log"
        self._before = folder / "before"
        self._tools = folder / "tools"
        self._arguments = arguments
        self.environment: dict[str, str] = {}
        self.took_s: list[tuple[float, str]] = []
        self._place_tools()

    def mapped(self, text: str) -> str:
        """With the paths of the image below the scratch root."""
        return _ELSEWHERE.sub(f"{self.root}/", text)

    def run(self, stage: Stage) -> None:
        """Every line of a stage; the folder has what the stage before it made, to copy from."""
        if self.root.exists():
            self.root.rename(self._before)
        self.root.mkdir()
        self.environment = {}
        shell, here = ["/bin/sh", "-c"], self.root
        for word, rest in stage.lines:
            if word == "ARG":
                name, _, value = rest.partition("=")
                self.environment[name] = self._arguments.get(name, value)
            elif word == "ENV":
                for pair in shlex.split(rest):
                    name, _, value = pair.partition("=")
                    self.environment[name] = self.mapped(value.replace("$PATH", os.environ["PATH"]))
            elif word == "SHELL":
                shell = words_of(rest)
            elif word == "WORKDIR":
                here = Path(self.mapped(rest))
                here.mkdir(parents=True, exist_ok=True)
            elif word == "COPY":
                self._copy(rest.split(), here)
            elif word == "RUN":
                self._run(shell, rest, here)
            else:
                known = ("LABEL", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD")
                assert word in known, f"{word}: not understood"

    def _run(self, shell: Sequence[str], command: str, here: Path) -> None:
        bound: list[Path] = []
        cached: set[str] = set()
        while found := re.match(r"--mount=(\S+)\s+", command):
            options = dict(option.split("=", 1) for option in found[1].split(","))
            # a cache is this machine's own, of the same tool
            if options["type"] == "bind":
                target = Path(self.mapped(options["target"]))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / options["source"], target)
                bound.append(target)
            else:
                # its variable is this machine's too, then
                assert options["type"] == "cache", command
                cached.add(self.mapped(options["target"]))
            command = command[found.end() :]
        path = f"{self._tools}:{self.environment.get('PATH', os.environ['PATH'])}"
        stated = {name: value for name, value in self.environment.items() if value not in cached}
        environment = {**os.environ, **stated, "PATH": path}
        for name in ("PYTHONPATH", "VIRTUAL_ENV", "COVERAGE_PROCESS_START"):
            environment.pop(name, None)
        began = time.monotonic()
        made = subprocess.run(
            [*shell, self.mapped(command)],
            cwd=here,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_RUN_S,
            check=False,
        )
        self.took_s.append((round(time.monotonic() - began, 1), command[:60]))
        assert made.returncode == 0, f"RUN {command}\n{made.stdout[-8000:]}"
        for each in bound:
            each.unlink()

    def _copy(self, words: list[str], here: Path) -> None:
        earlier = bool(words and words[0].startswith("--from="))
        *sources, target = words[1:] if earlier else words
        for source in sources:
            to = Path(self.mapped(target)) if target.startswith("/") else here / target
            if target.endswith("/"):
                to = to / Path(source).name
            to.parent.mkdir(parents=True, exist_ok=True)
            found = self._before / source.lstrip("/") if earlier else ROOT / source
            if found.is_dir():
                copy, left_out = (os.link, None) if earlier else (shutil.copy2, _left_out)
                shutil.copytree(found, to, symlinks=True, dirs_exist_ok=True, ignore=left_out, copy_function=copy)
            else:
                shutil.copy2(found, to)

    def _place_tools(self) -> None:
        """What stands for the distribution's own tools."""
        self._tools.mkdir(parents=True)
        tools = {
            # which packages there are is looked at afterwards; nothing of this machine is changed
            "apt-get": f'echo "$@" >> {shlex.quote(str(self.apt_log))}\n',
            "python3": f'exec {shlex.quote(getattr(sys, "_base_executable", sys.executable))} "$@"\n',
        }
        if os.geteuid() != 0:
            # only root may give files away
            tools["install"] = 'exec /usr/bin/install "$1" "$6"\n'
        for name, body in tools.items():
            path = self._tools / name
            path.write_text(f"#!/bin/sh\n{body}")
            path.chmod(0o755)

    def packages(self) -> set[str]:
        """All that was asked of apt-get."""
        asked = [line.split() for line in self.apt_log.read_text().splitlines()]
        return {word for words in asked if words[0] == "install" for word in words[1:] if not word.startswith("-")}


def ignored() -> list[str]:
    """What `.dockerignore` leaves out of what it lets in."""
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    return [line for line in lines if (line and line[0] not in "#!*") or line.startswith("**/")]


def let_in() -> set[str]:
    """What `.dockerignore` lets in, on the first level."""
    return {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}


def _left_out(folder: str, names: list[str]) -> list[str]:
    here = Path(folder).relative_to(ROOT)
    patterns = ignored()
    return [
        name
        for name in names
        if any(
            fnmatch.fnmatch(name, pattern[3:]) if pattern.startswith("**/") else (here / name).as_posix() == pattern
            for pattern in patterns
        )
    ]
