"""The dull loop that makes versions be what policy says they should be, one action at a time.

Floor 4: scan, decide (`policy`, pure), act (`loader`, the data plane), report (`table`). It never executes a request and
never decides by itself. One thread, `podium-lifecycle`, does everything that takes time; other threads ask and wait.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count

from server.core.clock import NS_PER_S, Clock, monotonic_ns
from server.core.errors import DeviceLost, LoadFailed, NotReady, PodiumError, ShuttingDown
from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.dataplane.interface import DataPlane
from server.lifecycle.commands import Command, at_rest, not_polled, outcome
from server.lifecycle.found import Given, Source
from server.lifecycle.index import IndexRow, index_rows
from server.lifecycle.loader import Loader
from server.lifecycle.metrics import Metrics
from server.lifecycle.policy import (
    Action,
    Actual,
    ControlMode,
    Desired,
    Load,
    Nothing,
    Reload,
    Serve,
    Unload,
    WaitUntil,
    desired,
    failed,
    identity,
    next_action,
)
from server.lifecycle.published import Published
from server.lifecycle.readiness import dead_problems, start_problems
from server.lifecycle.replica import Replica, queue_rules, replica_of
from server.lifecycle.retirement import Retirement
from server.lifecycle.scans import Scans
from server.lifecycle.table import Table
from server.lifecycle.watching import watch
from server.lifecycle.wishes import Wishes

_QUIESCE_S = 5.0
"""How long an unload waits for running requests before the loop turns to other work, to come back every `_REVISIT_S`."""
_REVISIT_S = 0.1

_log = logging.getLogger(__name__)


class Manager:
    """Owns every version of every model. Public methods may be called from any thread.

    `initial` names the models that `explicit` mode loads at start ("*": all); with `again` it loads these instead, as `asked`
    said in the life of the process before. `changes` yields whenever files may have changed, until the event is set; without it
    only `wake` makes the manager look.
    """

    def __init__(
        self,
        *,
        source: Source,
        loader: Loader,
        plane: DataPlane,
        metrics: Metrics,
        mode: ControlMode = "poll",
        initial: Sequence[str] = (),
        again: Mapping[str, ModelSettings | None] | None = None,
        settle_s: float = 1.0,
        clock: Clock = monotonic_ns,
        changes: Callable[[threading.Event], Iterator[None]] | None = None,
        on_change: Callable[[], None] = lambda: None,
        on_publish: Callable[[Published], None] = lambda published: None,
        on_device_lost: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._loader = loader
        self._plane = plane
        self._metrics = metrics
        self._mode: ControlMode = mode
        self._scans = Scans(source, int(settle_s * NS_PER_S), clock)
        self._clock = clock
        self._on_change = on_change
        self._on_device_lost = on_device_lost
        self._table = Table(metrics, on_publish)
        self._table.start(True)
        self._retirement = Retirement(self._table, plane, metrics, clock)
        self._queue_ids = count(1)
        # guarded by the condition
        self._condition = threading.Condition()
        self._commands: deque[Command] = deque()
        self._scan_wanted = True
        self._look_again = False
        self._closed_because = ""
        self._stop_deadline_ns = 0
        # written by the manager's thread by one reference assignment each, read by others
        self._wanted: Mapping[VersionKey, Desired] = {}
        self._missing: Mapping[str, str] = {}
        self._initial_done = False
        # the manager's thread alone
        self._wishes = Wishes(initial, again)
        self._pending: list[Command] = []
        self._stop_event = threading.Event()
        self._threads = [threading.Thread(target=self._run, name="podium-lifecycle", daemon=True)]
        if changes is not None:
            told = (changes, self.wake, self._stop_event)
            self._threads.append(threading.Thread(target=watch, args=told, name="podium-watch", daemon=True))

    @property
    def published(self) -> Published:
        """What serves at this instant."""
        return self._table.published

    def start(self) -> None:
        """Begin. Returns at once; `ready_problems` says when the initial load is over."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Take everything out of service in order: report, quiesce, close. False if the time ran out first.

        The data plane must still run. What is still executing at the end of the time stays open.
        """
        until_ns = self._clock() + int(timeout_s * NS_PER_S)
        with self._condition:
            self._stop_deadline_ns = until_ns
            self._stop_event.set()
            self._condition.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0, until_ns - self._clock()) / NS_PER_S)
        return not any(thread.is_alive() for thread in self._threads) and not len(self._retirement)

    def wake(self) -> None:
        """Something may have changed: look at the repository again."""
        with self._condition:
            self._scan_wanted = True
            self._condition.notify_all()

    def load(
        self,
        model: str,
        settings: ModelSettings | None = None,
        timeout_s: float | None = None,
        given: Given | None = None,
    ) -> None:
        """Bring a model to what is on disk now (or to what is `given` instead), and wait until that is done. `settings`
        replace its `model.toml`. Both hold until the next Load or Unload. What served before goes on serving if the new fails.

        Ownership: `given` passes to the manager, however this ends.
        Raises: NotReady in poll mode, LoadFailed, ShuttingDown.
        """
        self._ask(Command(model, True, settings, given), timeout_s)

    def unload(self, model: str, timeout_s: float | None = None) -> None:
        """Take a model out of service, and wait until its memory is given back. What is not loaded is unloaded already.

        Raises: NotReady in poll mode, LoadFailed when the time ran out first, ShuttingDown.
        """
        self._ask(Command(model, False), timeout_s)

    def mark_dead(self, replica: Replica, reason: str) -> None:
        """The replica's backend can execute nothing any more: it is out of service when this returns. Its siblings on other
        devices go on serving. Idempotent.
        """
        if self._retirement.bury(replica, reason):
            _log.error("%s: its backend is dead: %s", replica.key, reason)
            self._on_change()
            self._look()

    def lose_device(self, device: str, why: str) -> None:
        """Nothing can execute on a device any more, in this process: every version on it is out of service when this returns,
        and what waited for it is answered. Nothing is loaded on it again. Idempotent.
        """
        reason = f"device '{device}' is lost: {why}"
        if self._retirement.lose(device, reason, self._on_change):
            _log.error("%s", reason)
            self._look()
            self._on_device_lost(reason)

    def _look(self) -> None:
        with self._condition:
            self._look_again = True
            self._condition.notify_all()

    @property
    def lost(self) -> Mapping[str, str]:
        """Devices that nothing can be executed on any more, and why."""
        return self._table.lost

    @property
    def asked(self) -> Mapping[str, ModelSettings | None]:
        """What Loads stand that are from the repository, and the settings that replace the model's own."""
        return self._wishes.from_repository

    def ready_problems(self) -> list[str]:
        """Why this server should not be sent requests; empty when it should."""
        closed = [self._closed_because] if self._closed_because else []
        start = () if self._initial_done else start_problems(self._scans.problem)
        dead = dead_problems(self.lost, self._wanted.keys(), self._table.actual())
        return [*closed, *start, *self._missing.values(), *dead]

    def settings_on_disk(self, model: str) -> ModelSettings:
        """What the last scan read from a model's `model.toml`; the defaults for an unknown model."""
        found = self._scans.found.get(model)
        return ModelSettings() if found is None or found.settings is None else found.settings

    def index(self) -> list[IndexRow]:
        """Every version on disk or in memory, with its state and the reason for it."""
        return index_rows({**self._scans.found, **self._wishes.given}, self._table.actual())

    def _ask(self, command: Command, timeout_s: float | None) -> None:
        refusal: PodiumError | None = None
        with self._condition:
            if self._mode == "poll":
                refusal = NotReady("explicit model load / unload is not allowed if polling is enabled")
            elif self._closed_because:
                refusal = ShuttingDown(self._closed_because)
            else:
                self._commands.append(command)
                self._condition.notify_all()
        if refusal is not None:
            command.answer(refusal)
        command.wait(timeout_s)

    # podium-lifecycle

    def _run(self) -> None:
        try:
            while not self._stop_event.is_set():
                self._turn()
            self._refuse("Server is stopping, models can not be loaded or unloaded any more")
        except Exception as error:  # noqa: BLE001 - a bug; it is logged whole, and readiness says that nobody steers
            _log.exception("the lifecycle has crashed")
            self._refuse(f"the lifecycle has crashed: {type(error).__name__}: {error}")
            # what serves goes on serving until somebody stops the server
            self._stop_event.wait()
        self._shut_down()

    def _refuse(self, reason: str) -> None:
        with self._condition:
            self._closed_because = reason
            waiting = [*self._pending, *self._commands]
        self._on_change()
        for command in waiting:
            command.answer(ShuttingDown(reason))

    def _turn(self) -> None:
        self._retirement.close_idle()
        self._scan_if_due()
        self._accept()
        actual = self._table.actual()
        self._wanted = desired(self._scans.found, self._mode, self._wishes.current(), actual, self.published.defaults)
        if self._answer(actual):
            return  # what is wanted may have changed
        action = next_action(self._wanted, actual, self._clock())
        match action:
            case Load(key, serve) | Reload(key, serve):
                self._bring(key, serve)
            case Unload(key):
                replica = self._table.leave(key)
                if replica is not None:
                    _log.info("%s: unloading", key)
                    self._retirement.leave(replica)
                    self._retirement.close_idle(_QUIESCE_S)
            case WaitUntil() | Nothing():
                self._end_initial(action)
                self._on_change()
                self._sleep(action)

    def _scan_if_due(self) -> None:
        with self._condition:
            due, self._scan_wanted = self._scans.due or self._scan_wanted, False
        if due:
            self._scan()

    def _scan(self) -> None:
        if not self._scans.scan(wait_for_files=self._mode == "poll"):
            return
        if self._mode == "explicit" and not self._wishes.begun:
            self._missing = self._wishes.begin(self._scans.found)
            for problem in self._missing.values():
                _log.error("%s", problem)
        self._tell_table()

    def _tell_table(self) -> None:
        models = [*self._scans.found.values(), *self._wishes.given.values()]
        on_disk = {VersionKey(model.name, version) for model in models for version in model.versions}
        polled = {name: model.aliases for name, model in self._scans.found.items()}
        self._table.know(polled if self._mode == "poll" else self._wishes.aliases(), on_disk)

    def _accept(self) -> None:
        """Turn what was asked into wishes, each with a fresh look at the disk."""
        with self._condition:
            commands = list(self._commands)
            self._commands.clear()
        # noted before anything is done, so that they are answered even if the loop crashes
        self._pending.extend(commands)
        for command in commands:
            name, given = command.model, command.given
            if given is not None:
                command.given = None
                self._wishes.ask(given.found, command.settings, given, self._table.actual())
            elif command.load:
                self._scan()
                model = self._scans.found.get(name)
                if self._scans.problem or model is None or model.problem is not None:
                    self._pending.remove(command)
                    command.answer(LoadFailed(not_polled(name, model, self._scans.problem)))
                    continue
                self._wishes.ask(model, command.settings, None, self._table.actual())
            else:
                self._wishes.withdraw(name)
            self._missing = {other: text for other, text in self._missing.items() if other != name}
            self._table.forgive(name)
            self._tell_table()

    def _answer(self, actual: Mapping[VersionKey, Actual]) -> bool:
        """Answer every command whose model is at rest. False if there is none."""
        resting = [command for command in self._pending if at_rest(command.model, self._wanted, actual, self._clock())]
        wishes = self._wishes.current()
        for command in resting:
            if self._wishes.settle(command.model, actual):
                self._tell_table()
            self._pending.remove(command)
            command.answer(outcome(command, actual, wishes.get(command.model)))
        return bool(resting)

    def _bring(self, key: VersionKey, serve: Serve) -> None:
        _log.info("%s: loading", key)
        self._table.loading(key)
        begun_ns = self._clock()
        try:
            loaded = self._loader.load(serve.found, serve.settings, self.lost)
        except LoadFailed as error:
            self._not_brought(key, serve, begun_ns, error)
            return
        recorder = self._metrics.add(key)
        replica = replica_of([next(self._queue_ids) for _ in loaded.backends], serve, loaded, recorder)
        recorder.hold_memory(sum(each.memory_bytes for each in replica.everywhere))
        # the queues are there before anybody can find the replica
        for each in replica.everywhere:
            self._plane.open(queue_rules(each))
        try:
            old = self._table.ready(replica, identity(serve))
        except DeviceLost as error:
            self._retirement.leave(replica)
            (gone, *_) = [each.device for each in replica.everywhere if each.device in self.lost]
            self._not_brought(key, serve, begun_ns, LoadFailed(str(error), gone))
            return
        seconds = (self._clock() - begun_ns) / NS_PER_S
        self._metrics.record_load(key, seconds, ok=True)
        _log.info("%s: READY on %s after %.3f s", key, ", ".join(each.device for each in replica.everywhere), seconds)
        if old is not None:
            self._retirement.leave(old)
            self._retirement.close_idle(_QUIESCE_S)

    def _not_brought(self, key: VersionKey, serve: Serve, begun_ns: int, error: LoadFailed) -> None:
        now_ns = self._clock()
        _log.warning("%s: loading failed: %s", key, error)
        previous = self._table.actual()[key].failure
        dead = bool(error.device_lost)
        self._table.load_failed(key, failed(previous, identity(serve), now_ns, str(error), dead=dead))
        self._metrics.record_load(key, (now_ns - begun_ns) / NS_PER_S, ok=False)
        if dead:
            self.lose_device(error.device_lost, str(error))

    def _end_initial(self, action: Action) -> None:
        """The initial load is over when nothing is left to do; files that never settle hold it up for two periods."""
        if self._initial_done or isinstance(action, WaitUntil) or self._scans.awaits_files(wanted=self._mode == "poll"):
            return
        self._initial_done = True
        self._table.start(False)
        _log.info("the initial load has finished")

    def _sleep(self, action: Action) -> None:
        instants = [action.ns] if isinstance(action, WaitUntil) else []
        if self._scans.again_at_ns is not None:
            instants.append(self._scans.again_at_ns)
        timeout_s = max(0, min(instants) - self._clock()) / NS_PER_S if instants else None
        if len(self._retirement):
            timeout_s = _REVISIT_S if timeout_s is None else min(timeout_s, _REVISIT_S)
        with self._condition:
            if not (self._scan_wanted or self._commands or self._look_again or self._stop_event.is_set()):
                self._condition.wait(timeout_s)
            self._look_again = False

    def _shut_down(self) -> None:
        """Report everything away, then close what becomes idle in time."""
        self._wishes.close()
        for key in sorted(self.published.ready):
            replica = self._table.leave(key)
            if replica is not None:
                self._retirement.leave(replica)
        self._retirement.close_idle(max(0, self._stop_deadline_ns - self._clock()) / NS_PER_S)
        for replica in self._retirement.leaving():
            _log.warning("%s: still executing at the end of the time; not closed", replica.key)
