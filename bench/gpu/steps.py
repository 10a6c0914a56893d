"""Commands with a time limit of their own, each of which may fail without anything after it. Nothing but the standard library.

What a command leaves running ends with it: it is a process group, and the group is killed.
"""

import os
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_KEPT_CHARACTERS = 4000


@dataclass(frozen=True)
class Outcome:
    """`status`: an exit status, or None where the time was over. `text`: the end of what it said on standard error."""

    status: int | None
    said: str
    text: str
    took_s: float

    @property
    def good(self) -> bool:
        """Whether it did what it was for."""
        return self.status == 0

    @property
    def why(self) -> str:
        """Why it was not good."""
        head = "did not end in time" if self.status is None else f"status {self.status}"
        return f"{head}: {self.text or self.said[-_KEPT_CHARACTERS:]}".strip()


def run(
    command: Sequence[str | Path],
    limit_s: float,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    cores: Collection[int] = (),
) -> Outcome:
    """Run a command to its end, or to its limit. A command that is not there is one that failed."""
    begun = time.monotonic()
    try:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=folder,
            env=None if environment is None else {**os.environ, **environment},
            start_new_session=True,
        )
    except OSError as error:
        return Outcome(127, "", str(error), 0.0)
    if cores:
        # before it has threads: they inherit it
        os.sched_setaffinity(process.pid, cores)
    status: int | None = None
    try:
        said, complaint = process.communicate(timeout=max(limit_s, 0.1))
        status = process.returncode
    except subprocess.TimeoutExpired:
        _end(process)
        said, complaint = process.communicate()
    finally:
        _end(process)
    return Outcome(status, said, complaint[-_KEPT_CHARACTERS:], time.monotonic() - begun)


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
