"""Events handed to a program: on its standard input, without a shell.

Floor 4, on the thread of its courier. A program that takes too long is killed with everything it has started in its process
group. What it writes goes nowhere but for the end of its errors, which is told where it fails.
"""

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress

from server.monitoring.delivery import Undelivered
from server.monitoring.events import Event

_TOLD_BYTES = 500


class EventCommand:
    """A `Destination`. `command`: a program and its arguments. Exit status 0 is a receipt."""

    name = "command"

    def __init__(self, command: Sequence[str], timeout_s: float) -> None:
        self._command = tuple(command)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()  # guards what follows
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def deliver(self, event: Event) -> None:
        """Run it. Raises: Undelivered."""
        # files and no pipes: what the program has started may hold its ends of those for as long as it likes
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as errors:
            given.write(event.body)
            given.seek(0)
            with self._lock:
                if self._closed:
                    raise Undelivered("the server ends")
                try:
                    process = self._process = subprocess.Popen(
                        self._command, stdin=given, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
                    )
                except (OSError, ValueError) as error:
                    raise Undelivered(f"{self._command[0]} cannot be run: {error}", rejected=True) from None
            try:
                status = process.wait(self._timeout_s)
            except subprocess.TimeoutExpired:
                self._kill()
                raise Undelivered(f"{self._command[0]} has not ended within {self._timeout_s:g} s") from None
            finally:
                with self._lock:
                    self._process = None
            if status:
                errors.seek(max(0, errors.seek(0, os.SEEK_END) - _TOLD_BYTES))
                said = errors.read().decode(errors="replace").strip()
                raise Undelivered(f"{self._command[0]} ended with status {status}{f': {said}' if said else ''}")

    def close(self) -> None:
        """Kill what runs: its event was not received, and is tried again by the next process. Idempotent."""
        with self._lock:
            self._closed = True
        self._kill()

    def _kill(self) -> None:
        with self._lock:
            process = self._process
            # it leads its group, whose number is nobody else's as long as it was not waited for
            if process is not None and process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if process is not None:
            process.wait()
