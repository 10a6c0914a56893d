"""Whether a process begins anew, and what it takes along; the exec itself is seen in tests/server/test_new_beginnings.py."""

import json
import logging
import os
import signal
import sys
import threading
from typing import Any

import pytest

from server.core.restarts import VARIABLE, Restarts
from server.core.settings import ServerSettings
from server.restart import TOO_MANY, Origin, Restart, origin

S = 10**9
BEGUN = Origin(("python", "-m", "server", "serve"), {"HOME": "here"}, frozenset({0, 1, 2}), frozenset(), frozenset())


class Process:
    """What a process would do, written down."""

    def __init__(self, begun: Origin = BEGUN, now_ns: int = 100 * S, fault: OSError | None = None, **settings: Any) -> None:
        self.did: list[tuple[Any, ...]] = []
        self.done = threading.Event()
        self.fault = fault
        made = ServerSettings(repository="r", **settings)
        self.restart = Restart(made, begun, lambda: now_ns, self.exec, self.exit)

    def exec(self, path: str, command: tuple[str, ...], environment: dict[str, str]) -> None:
        self.did.append(("exec", path, command, environment))
        self.done.set()
        if self.fault is not None:
            raise self.fault

    def exit(self, status: int) -> None:
        self.did.append(("exit", status))


def after(*at_s: int, total: int | None = None) -> Origin:
    text = Restarts(os.getpid(), len(at_s) if total is None else total, tuple(at * S for at in at_s), "before").text()
    return Origin(BEGUN.command, {**BEGUN.environment, VARIABLE: text}, BEGUN.files, BEGUN.mask, BEGUN.ignored)


@pytest.fixture(autouse=True)
def _as_it_was() -> Any:
    """The process that runs these tests is not to be changed: its open files stay inheritable, its mask the same."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    kept = origin().files
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number in kept:
        os.set_inheritable(number, True)


def test_it_begins_with_the_same_command_and_environment_and_one_more_restart() -> None:
    process = Process()
    process.restart.begin("cuda:0 is lost")
    ((verb, path, command, environment),) = process.did
    assert (verb, path, command) == ("exec", "python", BEGUN.command)
    assert environment.pop("HOME") == "here"
    assert Restarts.of(environment.pop(VARIABLE), os.getpid()) == Restarts(os.getpid(), 1, (100 * S,), "cuda:0 is lost")
    assert environment == {}


def test_too_often_within_the_window_it_ends_with_a_status_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    limits: dict[str, Any] = {"max_device_restarts": 2, "device_restarts_window_s": 50.0}
    process = Process(after(10, 60), **limits)
    process.restart.begin("again")  # one of them is long ago
    assert process.did[0][0] == "exec"
    process = Process(after(60, 90), **limits)
    process.restart.begin("again")
    assert process.did == [("exit", TOO_MANY)]
    assert "a device is lost again and again: this process ends" in caplog.messages
    process = Process(max_device_restarts=0)
    process.restart.begin("the first")
    assert process.did == [("exit", TOO_MANY)]


def test_one_that_cannot_begin_ends(caplog: pytest.LogCaptureFixture) -> None:
    process = Process(fault=FileNotFoundError(2, "No such file", "python"))
    process.restart.begin("x")
    assert process.did[1:] == [("exit", TOO_MANY)]
    assert "the process cannot begin anew" in caplog.messages


def test_it_says_that_it_has_begun_anew(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Process().restart.tell()
        assert caplog.messages == []
        process = Process(after(5, total=7))
        process.restart.tell()
    assert process.restart.before.total == 7
    assert caplog.messages == ["begun anew after a lost device"]


def test_one_that_does_not_come_to_leave_begins_anew_all_the_same() -> None:
    process = Process()
    process.restart.watch("stuck", 0.01)
    assert process.done.wait(30)
    assert process.did[0][0] == "exec"


def test_one_that_was_told_to_leave_does_not() -> None:
    process = Process()
    process.restart.forget()
    process.restart.watch("stuck", 0.2)
    process.restart.forget()
    assert not process.done.wait(0.5)
    assert process.did == []


def test_files_that_nobody_handed_down_are_closed_at_exec() -> None:
    own, inherited = os.pipe(), os.pipe()
    try:
        for number in (*own, *inherited):
            os.set_inheritable(number, True)
        begun = Origin(BEGUN.command, {}, frozenset({0, 1, 2, *inherited}), BEGUN.mask, BEGUN.ignored)
        process = Process(begun)
        process.restart.begin("x")
        assert [os.get_inheritable(number) for number in own] == [False, False]
        assert [os.get_inheritable(number) for number in inherited] == [True, True]
    finally:
        for number in (*own, *inherited):
            os.close(number)


def test_signals_are_as_they_were() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    try:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        begun = origin()
        assert signal.SIGUSR2 in begun.ignored
        assert signal.SIGUSR1 in begun.mask
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        Process(begun).restart.begin("x")
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN
        assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_the_origin_is_this_process() -> None:
    begun = origin()
    assert begun.command == (sys.executable, *sys.orig_argv[1:])
    assert {0, 1, 2} <= begun.files
    assert begun.environment == dict(os.environ)
    assert json.loads(Restarts(os.getpid()).text())["process"] == os.getpid()
