import errno
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from server.backends.base import LoadTask
from server.core.errors import LoadFailed, NotFound, NotReady, RegistryError, ShuttingDown
from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.dataplane.interface import QueueRules
from server.lifecycle.commands import Command
from server.lifecycle.index import IndexRow
from server.lifecycle.loader import Loader
from server.lifecycle.manager import Manager
from server.lifecycle.policy import Action, ControlMode
from tests.lifecycle.doubles import (
    SETTINGS,
    Backends,
    Given,
    HandClock,
    Metrics,
    Model,
    Plane,
    Repository,
    changed,
    model,
    version,
    with_policy,
)

K1, K2, K3 = (VersionKey("m", number) for number in (1, 2, 3))


class ByHand(Manager):
    """Takes its turns on the test's own thread, up to where it would go to sleep."""

    at_rest = False

    def _sleep(self, action: Action) -> None:
        self.at_rest = True

    def settle(self) -> None:
        self.wake()
        self.carry_on()

    def carry_on(self) -> None:
        self.at_rest = False
        while not self.at_rest:
            self._turn()


class Scene:
    def __init__(
        self,
        *models: Model,
        mode: ControlMode = "poll",
        initial: tuple[str, ...] = (),
        changes: Callable[[threading.Event], Iterator[None]] | None = None,
        by_hand: bool = True,
    ) -> None:
        self.repository = Repository(*models)
        self.backends = Backends()
        self.plane = Plane()
        self.metrics = Metrics()
        self.clock = HandClock()
        self.problems: list[list[str]] = []
        loader = Loader(
            verify=self.repository.verify,
            backends={"fake": self.backends},
            warm=lambda backend, buckets, runs, clock: (1,) * len(buckets),
            load_golden=lambda path: pytest.fail("there are no examples"),
            compare_golden=lambda expected, got, rtol, atol, specs: None,
            read_labels=lambda folder, file: (),
            clock=self.clock,
        )
        kind = ByHand if by_hand else Manager
        self.manager = kind(
            source=self.repository,
            loader=loader,
            plane=self.plane,
            metrics=self.metrics,
            mode=mode,
            initial=initial,
            clock=self.clock,
            changes=changes,
            on_change=lambda: self.problems.append(self.manager.ready_problems()),
        )

    def settle(self) -> None:
        assert isinstance(self.manager, ByHand)
        self.manager.settle()

    def carry_on(self) -> None:
        assert isinstance(self.manager, ByHand)
        self.manager.carry_on()

    def ready(self) -> list[int]:
        return [int(row.version) for row in self.manager.index() if row.state == "READY"]

    def default(self) -> int:
        return self.manager.published.lookup("m", "").key.version


@pytest.fixture
def explicit() -> Iterator[Scene]:
    scene = Scene(model("m", 1), model("n", 1), mode="explicit", by_hand=False)
    scene.manager.start()
    yield scene
    assert scene.manager.stop(10)


def test_a_version_is_announced_only_when_its_queue_is_open() -> None:
    scene = Scene(model("m", 1))
    seen: list[list[IndexRow]] = []

    def look(rules: QueueRules) -> None:
        with pytest.raises(NotReady):
            scene.manager.published.lookup("m", "1")
        seen.append(scene.manager.index())

    scene.plane.on_open = look
    assert scene.manager.ready_problems() == ["the initial load has not finished"]
    scene.settle()
    assert seen == [[IndexRow("m", "1", "LOADING", "")]]
    assert scene.manager.index() == [IndexRow("m", "1", "READY", "")]
    assert scene.manager.ready_problems() == []
    mine = scene.manager.published.lookup("m", "")
    assert mine.recorder is scene.metrics.recorders[K1]
    assert scene.metrics.recorders[K1].memory_bytes == 1000
    assert scene.metrics.ready == {K1}
    assert scene.metrics.loads == [(K1, 0.0, True)]
    assert (mine.stamp, mine.buckets, mine.costs_ns) == ("a", (1, 2, 4), (1, 1, 1))


def test_the_old_version_leaves_after_the_new_one_serves() -> None:
    scene = Scene(model("m", 1))
    scene.settle()
    scene.repository.put(model("m", 1, 2))
    scene.settle()
    assert scene.plane.story == [("open", K1), ("open", K2), ("close", K1), ("idle", K1)]
    assert scene.backends.alive() == [K2]
    assert scene.metrics.ready == {K2}
    assert K1 not in scene.metrics.recorders
    assert scene.manager.index() == [IndexRow("m", "1", "UNAVAILABLE", "unloaded"), IndexRow("m", "2", "READY", "")]


def test_a_failed_load_leaves_the_old_version_serving() -> None:
    scene = Scene(model("m", 1))
    scene.settle()
    scene.repository.corrupt.add(K2)
    scene.repository.put(model("m", 1, 2))
    scene.settle()
    assert scene.default() == 1
    assert scene.manager.index()[1] == IndexRow("m", "2", "UNAVAILABLE", "verify digests: m:2: digest differs")
    assert scene.metrics.loads[-1] == (K2, 0.0, False)
    # not tried again before its files change
    attempts = len(scene.metrics.loads)
    scene.clock.pass_s(1000)
    scene.settle()
    assert len(scene.metrics.loads) == attempts
    scene.repository.corrupt.clear()
    scene.repository.put(model("m", 1, version(2, "b")))
    scene.settle()
    assert scene.ready() == [2]


def test_loads_are_tried_again_as_often_as_settings_say() -> None:
    scene = Scene(model("m", 1, settings=SETTINGS.model_copy(update={"load_retries": 2})))
    scene.backends.faults[K1] = "busy"
    scene.settle()
    assert len(scene.metrics.loads) == 1
    assert scene.manager.ready_problems() == ["the initial load has not finished"]
    scene.clock.pass_s(1)
    scene.carry_on()
    assert len(scene.metrics.loads) == 2
    scene.clock.pass_s(1)
    scene.carry_on()
    assert len(scene.metrics.loads) == 2
    del scene.backends.faults[K1]
    scene.clock.pass_s(1)
    scene.carry_on()
    assert scene.ready() == [1]
    assert scene.manager.ready_problems() == []


def test_changed_files_are_loaded_beside_what_serves_then_swapped() -> None:
    scene = Scene(model("m", 1))
    scene.settle()
    old = scene.manager.published.lookup("m", "")

    def still_served(task: LoadTask) -> None:
        assert scene.manager.published.lookup("m", "") is old
        assert not scene.backends.opened[0].closed

    scene.backends.on_open = still_served
    scene.repository.put(model("m", version(1, "b")))
    scene.settle()
    new = scene.manager.published.lookup("m", "")
    assert (new.stamp, new.queue_id != old.queue_id) == ("b", True)
    assert new.recorder is old.recorder
    assert [backend.closed for backend in scene.backends.opened] == [1, 0]
    assert scene.metrics.ready == {K1}
    # a reload that fails keeps what serves
    scene.backends.on_open = lambda task: None
    scene.backends.faults[K1] = "torn"
    scene.repository.put(model("m", version(1, "c")))
    scene.settle()
    assert scene.manager.published.lookup("m", "") is new
    assert scene.manager.index() == [IndexRow("m", "1", "READY", "serves what was loaded before: open: torn")]


def test_what_left_is_closed_only_after_its_last_request() -> None:
    scene = Scene(model("m", 1))
    scene.settle()
    queue_id = scene.manager.published.lookup("m", "").queue_id
    scene.plane.begin(queue_id)
    scene.repository.remove("m")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.lifecycle.manager._QUIESCE_S", 0.0)
        scene.settle()
    assert scene.manager.index() == [IndexRow("m", "1", "UNLOADING", "")]
    assert scene.backends.alive() == [K1]
    with pytest.raises(NotFound):
        scene.manager.published.lookup("m", "")
    scene.plane.end(queue_id)
    scene.carry_on()
    assert scene.backends.alive() == []
    # neither on disk nor in memory: forgotten at the next look
    scene.settle()
    assert scene.manager.index() == []
    with pytest.raises(NotFound, match="'m' is not found"):
        scene.manager.published.lookup("m", "1")


def test_a_version_that_is_still_leaving_is_not_gone_when_an_older_replica_of_it_closes() -> None:
    scene = Scene(model("m", 1))
    scene.settle()
    first = scene.manager.published.lookup("m", "").queue_id
    scene.plane.begin(first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.lifecycle.manager._QUIESCE_S", 0.0)
        scene.repository.put(model("m", version(1, "b")))
        scene.settle()
        second = scene.manager.published.lookup("m", "").queue_id
        scene.plane.begin(second)
        scene.repository.remove("m")
        scene.settle()
    scene.plane.end(first)
    scene.carry_on()
    assert scene.manager.index() == [IndexRow("m", "1", "UNLOADING", "")]
    scene.plane.end(second)
    scene.carry_on()
    assert scene.manager.index() == [IndexRow("m", "1", "UNAVAILABLE", "unloaded")]
    assert scene.backends.alive() == []


def test_a_dead_backend_leaves_service_at_once_and_unreadies_the_server() -> None:
    scene = Scene(model("m", 1, 2))
    scene.settle()
    mine = scene.manager.published.lookup("m", "")
    assert scene.problems[-1] == []
    scene.manager.mark_dead(mine, "CUDA error 700")
    scene.manager.mark_dead(mine, "CUDA error 700")
    assert scene.problems[-1] == ["m:2: its backend is dead: CUDA error 700"]
    with pytest.raises(NotReady, match="version 2 is not at ready state"):
        scene.manager.published.lookup("m", "2")
    assert scene.manager.ready_problems() == ["m:2: its backend is dead: CUDA error 700"]
    assert scene.metrics.ready == set()
    assert scene.plane.story[-1] == ("close", K2)
    scene.settle()
    assert scene.backends.alive() == []
    assert scene.manager.index() == [IndexRow("m", "1", "", ""), IndexRow("m", "2", "UNAVAILABLE", "CUDA error 700")]
    # new files are another chance
    scene.repository.put(model("m", 1, version(2, "b")))
    scene.settle()
    assert scene.ready() == [2]
    assert scene.manager.ready_problems() == []


def test_a_repository_out_of_reach_unloads_nothing() -> None:
    scene = Scene(model("m", 1))
    scene.repository.fault = OSError(errno.ESTALE, "stale file handle")
    scene.settle()
    assert scene.manager.ready_problems() == [
        "the initial load has not finished",
        "the repository cannot be read: stale file handle",
    ]
    scene.repository.fault = None
    scene.clock.pass_s(1)
    scene.carry_on()
    assert scene.ready() == [1]
    scene.repository.fault = RegistryError("no such folder")
    scene.settle()
    assert scene.ready() == [1]
    assert scene.manager.ready_problems() == []


def test_files_still_being_written_are_waited_for() -> None:
    scene = Scene(model("m", version(1, settled=False)))
    scene.settle()
    assert scene.ready() == []
    assert scene.manager.ready_problems() == ["the initial load has not finished"]
    scans = scene.repository.scans
    scene.carry_on()
    assert scene.repository.scans == scans
    scene.repository.put(model("m", 1))
    scene.clock.pass_s(1)
    scene.carry_on()
    assert scene.ready() == [1]
    assert scene.manager.ready_problems() == []


def test_files_that_never_settle_do_not_hold_up_the_server() -> None:
    scene = Scene(model("m", version(1, settled=False)), model("n", 1))
    scene.settle()
    scene.clock.pass_s(2)
    scene.carry_on()
    assert scene.manager.ready_problems() == []
    assert scene.metrics.ready == {VersionKey("n", 1)}


def test_the_champion_answers_and_an_alias_moves_without_a_load() -> None:
    scene = Scene(model("m", 1, 2, champion=1, challenger=2))
    scene.settle()
    assert (scene.default(), scene.ready()) == (1, [1, 2])
    loads = len(scene.metrics.loads)
    scene.repository.put(model("m", 1, 2, champion=2, challenger=1))
    scene.settle()
    assert scene.default() == 2
    assert len(scene.metrics.loads) == loads


def test_poll_mode_refuses_load_and_unload() -> None:
    scene = Scene(model("m", 1))
    for ask in (scene.manager.load, scene.manager.unload):
        with pytest.raises(NotReady, match=r"^explicit model load / unload is not allowed if polling is enabled$"):
            ask("m")


def test_explicit_mode_loads_at_start_what_it_is_told() -> None:
    scene = Scene(model("m", 1), model("n", 1), mode="explicit", initial=("m", "typo"))
    scene.settle()
    assert scene.metrics.ready == {K1}
    assert scene.manager.ready_problems() == ["failed to load 'typo', failed to poll from model repository"]
    everything = Scene(model("m", 1), Model("bad", None, problem="no"), mode="explicit", initial=("*",))
    everything.settle()
    assert everything.metrics.ready == {K1}
    assert everything.manager.ready_problems() == ["failed to load 'bad', failed to poll from model repository: no"]


def test_load_and_unload(explicit: Scene) -> None:
    manager = explicit.manager
    with pytest.raises(NotFound, match="'m' is not found"):
        manager.published.lookup("m", "")
    manager.load("m")
    assert explicit.default() == 1
    manager.load("m")
    assert len(explicit.backends.opened) == 1
    # nothing but a Load makes explicit mode look at new versions
    explicit.repository.put(model("m", 1, 2))
    manager.wake()
    manager.load("n")
    assert explicit.default() == 1
    manager.load("m")
    assert explicit.default() == 2
    assert explicit.backends.alive() == [K2, VersionKey("n", 1)]
    manager.unload("m")
    assert explicit.backends.alive() == [VersionKey("n", 1)]
    with pytest.raises(NotFound, match="'m' has no available versions"):
        manager.published.lookup("m", "")
    manager.unload("m")
    manager.unload("never heard of")


def test_a_load_says_why_it_failed(explicit: Scene) -> None:
    manager, repository = explicit.manager, explicit.repository
    with pytest.raises(LoadFailed) as raised:
        manager.load("unknown")
    assert str(raised.value) == "failed to load 'unknown', failed to poll from model repository"
    repository.put(Model("bad", None, problem="model.toml: line 3"), model("empty", settings=SETTINGS))
    with pytest.raises(LoadFailed, match=r"failed to poll from model repository: model\.toml: line 3"):
        manager.load("bad")
    with pytest.raises(LoadFailed, match="failed to load 'empty', no version is available"):
        manager.load("empty")
    repository.fault = OSError(errno.ESTALE, "stale")
    with pytest.raises(LoadFailed, match="failed to poll from model repository: the repository cannot be read: stale"):
        manager.load("m")
    repository.fault = None
    explicit.backends.faults[K1] = "no memory"
    with pytest.raises(LoadFailed) as raised:
        manager.load("m")
    assert str(raised.value) == "load failed for model 'm': version 1 is at UNAVAILABLE state: open: no memory;"
    # asked again, it is tried again although nothing on disk has changed
    explicit.backends.faults.clear()
    manager.load("m")
    assert explicit.default() == 1


def test_an_override_stays_until_the_next_load_without_it(explicit: Scene) -> None:
    manager = explicit.manager
    explicit.repository.put(model("m", 1, 2))
    manager.load("m", with_policy(policy="specific", specific=(1,)))
    assert explicit.default() == 1
    wide = SETTINGS.model_copy(update={"max_batch": 8, "versions": with_policy(policy="all").versions})
    manager.load("m", wide)
    assert manager.published.ready_versions("m") == (1, 2)
    assert manager.published.lookup("m", "1").settings.max_batch == 8
    # an override that fails leaves what serves
    explicit.backends.faults[K2] = "too wide"
    with pytest.raises(LoadFailed, match="version 2 is at UNAVAILABLE state: open: too wide"):
        manager.load("m", wide.model_copy(update={"max_batch": 9}))
    assert manager.published.lookup("m", "2").settings.max_batch == 8
    explicit.backends.faults.clear()
    manager.load("m")
    assert manager.published.ready_versions("m") == (2,)
    assert manager.published.lookup("m", "").settings == SETTINGS


def test_given_files_serve_until_the_next_load_or_unload(explicit: Scene) -> None:
    manager = explicit.manager
    explicit.repository.put(model("m", 1, 2, champion=1))
    manager.load("m")
    assert manager.published.lookup("m", "champion").key == K1
    mine = Given(model("m", version(3, "given")))
    scans = explicit.repository.scans
    explicit.repository.fault = OSError(errno.ESTALE, "stale")
    manager.load("m", with_policy(policy="all"), given=mine)
    assert explicit.repository.scans == scans, "the repository has no say in it"
    explicit.repository.fault = None
    assert explicit.default() == 3
    assert [row for row in manager.index() if row.state == "READY"] == [IndexRow("m", "3", "READY", "")]
    manager.load("n")
    assert (explicit.default(), mine.closed) == (3, False)
    manager.load("m")
    assert (explicit.default(), mine.closed) == (1, True)
    assert manager.published.lookup("m", "champion").key == K1
    unknown = Given(model("u", version(7, "given", name="u")))
    manager.load("u", SETTINGS, given=unknown)
    assert manager.published.ready_versions("u") == (7,)
    with pytest.raises(LoadFailed, match="failed to poll from model repository"):
        manager.load("u")
    assert (manager.published.ready_versions("u"), unknown.closed) == ((7,), False)
    manager.unload("u")
    assert unknown.closed
    manager.load("n")
    assert not [row for row in manager.index() if row.model == "u"]


@pytest.mark.parametrize("number", [1, 3])
def test_given_files_that_fail_change_nothing(explicit: Scene, number: int) -> None:
    manager, bad = explicit.manager, VersionKey("m", number)
    explicit.repository.put(replace(model("m", 1, 2, champion=1), settings=with_policy(policy="all")))
    manager.load("m")
    before = dict(manager.published.ready)
    garbage = Given(model("m", version(number, "given")))
    explicit.backends.faults[bad] = "garbage"
    with pytest.raises(LoadFailed, match=f"version {number} is at UNAVAILABLE state: open: garbage"):
        manager.load("m", SETTINGS, given=garbage)
    assert garbage.closed
    assert dict(manager.published.ready) == before
    assert manager.published.lookup("m", "champion").key == K1
    # nor does a policy that leaves nothing of them
    idle = Given(model("m", version(number, "given")))
    with pytest.raises(LoadFailed, match="failed to load 'm', no version is available"):
        manager.load("m", with_policy(policy="specific", specific=(9,)), given=idle)
    assert idle.closed
    assert dict(manager.published.ready) == before
    # the model is the repository's as before
    manager.mark_dead(before[K2], "lost")
    manager.load("n")
    assert manager.ready_problems() == ["m:2: its backend is dead: lost"]


def test_a_repository_that_fails_leaves_given_files_serving(explicit: Scene) -> None:
    manager, mine = explicit.manager, Given(model("m", version(5, "given")))
    manager.load("m", SETTINGS, given=mine)
    explicit.backends.faults[K1] = "torn"
    with pytest.raises(LoadFailed, match="version 1 is at UNAVAILABLE state: open: torn"):
        manager.load("m")
    assert (explicit.default(), mine.closed) == (5, False)


def test_given_files_are_removed_however_a_load_ends(explicit: Scene) -> None:
    polled, mine = Scene(model("m", 1)), Given(model("m", 1))
    with pytest.raises(NotReady):
        polled.manager.load("m", SETTINGS, given=mine)
    assert mine.closed
    failing, served, late = (Given(model(name, version(1, "g", name=name))) for name in ("f", "s", "l"))
    explicit.backends.faults[VersionKey("f", 1)] = "no"
    with pytest.raises(LoadFailed, match="open: no"):
        explicit.manager.load("f", SETTINGS, given=failing)
    assert failing.closed
    assert IndexRow("f", "1", "UNAVAILABLE", "open: no") in explicit.manager.index()
    explicit.manager.load("s", SETTINGS, given=served)
    assert (served.closed, explicit.manager.stop(10)) == (False, True)
    assert (served.closed, explicit.manager.published.ready) == (True, {})
    with pytest.raises(ShuttingDown):
        explicit.manager.load("l", SETTINGS, given=late)
    assert late.closed


def test_given_files_are_there_for_every_attempt() -> None:
    patient = SETTINGS.model_copy(update={"load_retries": 1})
    scene, mine = Scene(mode="explicit"), Given(model("m", 1))
    scene.backends.faults[K1] = "busy"
    scene.manager._commands.append(command := Command("m", True, patient, mine))
    scene.settle()
    assert (mine.closed, command.done.is_set(), len(scene.backends.tasks)) == (False, False, 1)
    del scene.backends.faults[K1]
    scene.clock.pass_s(1)
    scene.carry_on()
    assert (mine.closed, command.done.is_set(), command.error) == (False, True, None)
    assert scene.ready() == [1]


def test_a_load_brings_a_dead_version_back(explicit: Scene) -> None:
    explicit.manager.load("m")
    explicit.manager.mark_dead(explicit.manager.published.lookup("m", ""), "lost")
    explicit.manager.load("n")
    assert explicit.manager.ready_problems() == ["m:1: its backend is dead: lost"]
    explicit.manager.load("m")
    assert explicit.manager.ready_problems() == []
    assert explicit.default() == 1


def test_a_load_that_takes_too_long_for_its_caller_goes_on(explicit: Scene) -> None:
    go_on = threading.Event()
    explicit.backends.on_open = lambda task: None if go_on.wait(10) else pytest.fail("nobody let it go on")
    with pytest.raises(LoadFailed, match="failed to load 'm' within 0 seconds; it goes on"):
        explicit.manager.load("m", timeout_s=0)
    go_on.set()
    explicit.manager.load("m")
    assert explicit.default() == 1


def test_unload_waits_for_the_last_request(explicit: Scene) -> None:
    manager, plane = explicit.manager, explicit.plane
    manager.load("m")
    queue_id = manager.published.lookup("m", "").queue_id
    plane.begin(queue_id)
    with pytest.raises(LoadFailed, match="failed to unload 'm' within 0 seconds; it goes on"):
        manager.unload("m", timeout_s=0)
    assert explicit.backends.alive() == [K1]
    plane.end(queue_id)
    manager.unload("m")
    assert explicit.backends.alive() == []


def test_an_unload_that_outlasts_the_patience_is_come_back_to(explicit: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.lifecycle.manager._QUIESCE_S", 0.0)
    manager, plane = explicit.manager, explicit.plane
    manager.load("m")
    queue_id = manager.published.lookup("m", "").queue_id
    plane.begin(queue_id)
    with pytest.raises(LoadFailed, match="it goes on"):
        manager.unload("m", timeout_s=0)
    # other models do not wait for it
    manager.load("n")
    plane.end(queue_id)
    manager.unload("m")
    assert explicit.backends.alive() == [VersionKey("n", 1)]


def test_retries_happen_by_themselves() -> None:
    scene = Scene(model("m", 1, settings=SETTINGS.model_copy(update={"load_retries": 1})), mode="explicit", by_hand=False)
    scene.backends.faults[K1] = "busy"

    def recover(task: LoadTask) -> None:
        if len(scene.backends.tasks) == 1:
            scene.clock.pass_s(0.5)
        else:
            scene.backends.faults.clear()

    def later() -> int:
        # the hand clock moves on whenever somebody looks at it
        scene.clock.pass_s(0.3)
        return scene.clock.ns

    scene.manager._clock = later
    scene.backends.on_open = recover
    scene.manager.start()
    scene.manager.load("m")
    assert len(scene.backends.tasks) == 2
    assert scene.manager.stop(10**6)


def test_stop_reports_away_quiesces_and_closes(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(model("m", 1, 2, settings=with_policy(policy="all")), mode="explicit", by_hand=False)
    scene.manager.start()
    scene.manager.load("m")
    scene.backends.opened[0].close_fault = RuntimeError("jammed")
    assert scene.manager.stop(10)
    assert "m:2: closing its backend failed" in caplog.text
    # both are reported and closed to callers before the first is waited for
    assert scene.plane.story[-4:] == [("close", K1), ("close", K2), ("idle", K1), ("idle", K2)]
    assert scene.backends.alive() == []
    assert scene.metrics.recorders == {}
    with pytest.raises(ShuttingDown):
        scene.manager.load("m")
    assert scene.manager.ready_problems() != []


def test_stop_leaves_open_what_still_executes() -> None:
    scene = Scene(model("m", 1), mode="explicit", by_hand=False)
    scene.manager.start()
    scene.manager.load("m")
    scene.plane.begin(scene.manager.published.lookup("m", "").queue_id)
    scene.manager.stop(0)
    for thread in threading.enumerate():
        if thread.name == "podium-lifecycle":
            thread.join()
    assert not scene.manager.stop(0)
    assert scene.backends.alive() == [K1]
    with pytest.raises(NotFound):
        scene.manager.published.lookup("m", "")


def test_a_manager_that_never_started_stops() -> None:
    assert Scene(model("m", 1), by_hand=False).manager.stop(1)


def test_file_changes_wake_the_manager() -> None:
    write, seen = threading.Event(), threading.Event()

    def changes(stop: threading.Event) -> Iterator[None]:
        assert write.wait(10)
        yield
        stop.wait()

    scene = Scene(model("m", 1), changes=changes, by_hand=False)
    scene.plane.on_open = lambda rules: seen.set() if rules.key == K2 else None
    scene.manager.start()
    scene.repository.put(model("m", changed(version(1), stamp="b"), 2))
    write.set()
    assert seen.wait(10)
    assert scene.manager.stop(10)


def test_a_watch_that_breaks_is_begun_anew(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("server.lifecycle.watching._RETRY_WATCH_S", 0.0)
    begun: list[int] = []
    again = threading.Event()

    def changes(stop: threading.Event) -> Iterator[None]:
        begun.append(len(begun))
        if len(begun) == 1:
            raise OSError("too many watches")
        again.set()
        stop.wait()
        yield

    scene = Scene(model("m", 1), changes=changes, by_hand=False)
    scene.manager.start()
    assert again.wait(10)
    assert scene.manager.stop(10)
    assert begun == [0, 1]
    assert "too many watches" in caplog.text


def test_a_crash_is_reported_and_what_serves_goes_on() -> None:
    scene = Scene(model("m", 1), mode="explicit", by_hand=False)
    scene.manager.start()
    scene.manager.load("m")
    scene.repository.fault = ZeroDivisionError("a bug")
    with pytest.raises(ShuttingDown, match="the lifecycle has crashed: ZeroDivisionError: a bug"):
        scene.manager.load("m")
    assert scene.manager.ready_problems() == ["the lifecycle has crashed: ZeroDivisionError: a bug"]
    assert scene.problems[-1] == scene.manager.ready_problems()
    assert scene.default() == 1
    assert scene.manager.stop(10)
    assert scene.backends.alive() == []


def test_settings_on_disk() -> None:
    scene = Scene(model("m", 1), Model("bad", None, problem="no"))
    scene.settle()
    assert scene.manager.settings_on_disk("m") == SETTINGS
    assert scene.manager.settings_on_disk("bad") == scene.manager.settings_on_disk("unknown") == ModelSettings()


def test_settings_of_the_lifecycle_alone_reload_nothing() -> None:
    scene = Scene(model("m", 1))
    scene.settle()
    scene.repository.put(replace(model("m", 1), settings=with_policy(policy="all")))
    scene.settle()
    assert len(scene.backends.opened) == 1
