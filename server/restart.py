"""A process that begins anew in its own place, once a device was lost that only a new process can use again.

Roof, beside `app`: the program is replaced by itself (exec), with the command line, environment, open files and signals that
whoever started it gave it. Its number stays, so neither a supervisor nor a container takes notice. What runs at that moment
on other threads, stuck in a dead device say, ends there: no destructor is called, no lock is waited for.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from server.core.clock import NS_PER_S, Clock, monotonic_ns
from server.core.restarts import VARIABLE, Restarts
from server.core.settings import ServerSettings
from server.handed_on import NOTHING, Loads, hand_on, handed_on

TOO_MANY = 3
"""The exit status of a process whose devices are lost again and again."""

_LATEST_S = 60.0
"""How long leaving in order may take. What takes longer is stuck: the process begins anew without it."""

_log = logging.getLogger("podium")


@dataclass(frozen=True, slots=True)
class Origin:
    """How a process was begun. `files` are those that were open and meant to be inherited, `ignored` the signals that were."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    files: frozenset[int]
    mask: frozenset[int]
    ignored: frozenset[int]


def origin() -> Origin:
    """To be asked before anything is opened. Ownership: the main thread."""
    ignored = (number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN)
    return Origin(
        # the interpreter's own options, and the module or script it was told to run, are in no other list
        command=(sys.executable, *sys.orig_argv[1:]),
        environment=dict(os.environ),
        files=frozenset(number for number in _open_files() if _inheritable(number)),
        mask=frozenset(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
        ignored=frozenset(map(int, ignored)),
    )


class Restart:
    """Whether, and how, this process begins anew.

    `exec_` and `exit_` never return: `os.execve` and `os._exit`.
    """

    def __init__(
        self,
        settings: ServerSettings,
        begun: Origin,
        clock: Clock = monotonic_ns,
        exec_: Callable[[str, tuple[str, ...], dict[str, str]], object] = os.execve,
        exit_: Callable[[int], object] = os._exit,
    ) -> None:
        self._limit = settings.max_device_restarts
        self._window_s = settings.device_restarts_window_s
        self._begun = begun
        self._clock = clock
        self._exec = exec_
        self._exit = exit_
        self._timer: threading.Timer | None = None
        self._one = threading.Lock()
        self.before = Restarts.of(begun.environment.get(VARIABLE), os.getpid())
        """Those that there were."""
        self.loads: Loads | None = handed_on(self.before.handed)
        """What the life before had loaded because callers asked for it, if this one begins anew."""
        self._handing: Loads | None = None

    def tell(self) -> None:
        """Say so, if this is one."""
        if self.before.total:
            _log.warning("begun anew after a lost device", extra={"reason": self.before.reason, "restarts": self.before.total})

    def hand_on(self, loads: Loads | None) -> None:
        """What the next life is to load, whatever its settings say."""
        self._handing = loads

    def watch(self, reason: str, latest_s: float = _LATEST_S) -> None:
        """Begin anew after `latest_s` though the process has not come to leave in order."""
        timer = self._timer = threading.Timer(latest_s, self._late, (reason,))
        timer.daemon = True
        timer.start()

    def forget(self) -> None:
        """Do not begin anew unasked."""
        if self._timer is not None:
            self._timer.cancel()

    def _late(self, reason: str) -> None:
        _log.error("not everything has ended in time: it is left behind", extra={"reason": reason})
        self.begin(reason)

    def begin(self, reason: str) -> None:
        """Replace this process's program by itself; or end the process, with a status of its own, where that was too often.

        Does not return. What was to be written must have been written. Any thread; the first one alone gets anywhere.
        """
        self._one.acquire()  # never released: there is nothing after this
        now_ns = self._clock()
        recent = self.before.within(now_ns, round(self._window_s * NS_PER_S))
        if recent >= self._limit:
            _log.error(
                "a device is lost again and again: this process ends",
                extra={"reason": reason, "restarts": recent, "window_s": self._window_s, "status": TOO_MANY},
            )
            _flush()
            self._exit(TOO_MANY)
            return
        handed = NOTHING if self._handing is None else hand_on(self._handing)
        after = self.before.another(now_ns, reason, handed)
        _log.warning("beginning anew in the same process", extra={"reason": reason, "restarts": after.total})
        _flush()
        _close_at_exec(self._begun.files - {self.before.handed} | {handed})
        if threading.current_thread() is threading.main_thread():
            for number in self._begun.ignored:
                signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._begun.mask)
        command = self._begun.command
        try:
            self._exec(command[0], command, {**self._begun.environment, VARIABLE: after.text()})
        except OSError as error:
            # the interpreter was replaced under it, say: whoever started the process has to start it again
            _log.error("the process cannot begin anew", extra={"reason": str(error), "status": TOO_MANY})
            _flush()
            self._exit(TOO_MANY)


def _open_files() -> list[int]:
    return [int(path.name) for path in Path("/proc/self/fd").iterdir()]


def _inheritable(number: int) -> bool:
    try:
        return os.get_inheritable(number)
    except OSError:
        return False  # that of the folder just listed


def _close_at_exec(kept: frozenset[int]) -> None:
    """Files of libraries that do not see to it themselves: a device that stays open stays broken, a port stays bound."""
    for number in _open_files():
        if number not in kept:
            with suppress(OSError):
                os.set_inheritable(number, False)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
