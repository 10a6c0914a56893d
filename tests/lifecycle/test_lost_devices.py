"""A device that nothing can execute on any more: whatever was on it is out of service at once, and nothing comes back to it."""

import pytest

from server.backends.base import LoadTask
from server.core.errors import DeviceLost, LoadFailed, NotFound, NotReady
from server.core.settings import FakeSettings
from server.core.versions import State, VersionKey
from server.dataplane.interface import QueueRules
from server.lifecycle.index import IndexRow
from tests.lifecycle.doubles import SETTINGS, Backend, model, version, with_policy
from tests.lifecycle.test_manager import Scene

ON_FAKE = SETTINGS.model_copy(update={"fake": FakeSettings(device="accelerator")})
ON_OTHER = SETTINGS.model_copy(update={"fake": FakeSettings(device="accelerator", device_id=1)})
LOST = "device 'fake:0' is lost: an illegal access"


def lose(scene: Scene) -> None:
    scene.manager.lose_device("fake:0", "an illegal access")


def refused(scene: Scene, name: str, number: str = "") -> str:
    with pytest.raises(NotReady) as told:
        scene.manager.published.lookup(name, number)
    return str(told.value)


def test_everything_on_it_leaves_at_once_and_the_rest_goes_on() -> None:
    scene = Scene(
        model("a", 1, settings=ON_FAKE), model("b", 1, 2, settings=ON_FAKE), model("c", 1), model("d", 1, settings=ON_OTHER)
    )
    scene.settle()
    queues = {replica.key: replica.queue_id for replica in scene.manager.published.ready.values()}
    scene.problems.clear()
    lose(scene)
    assert scene.problems == [[LOST]], "whoever is told of a change finds it made"
    assert sorted(scene.manager.published.ready) == [VersionKey("c", 1), VersionKey("d", 1)]
    assert scene.metrics.ready == {VersionKey("c", 1), VersionKey("d", 1)}
    failed = {key: story for story, key in scene.plane.story if story.startswith("fail")}
    assert failed == {
        VersionKey("a", 1): f"fail: 'a' is not at ready state: {LOST}",
        VersionKey("b", 2): f"fail: 'b' is not at ready state: {LOST}",
    }
    assert scene.plane.closed == {queues[key] for key in failed}
    assert refused(scene, "a") == f"Request for unknown model: 'a' is not at ready state: {LOST}"
    assert refused(scene, "a", "1") == "Request for unknown model: 'a' version 1 is not at ready state"
    story, changes = list(scene.plane.story), len(scene.problems)
    lose(scene)
    assert (scene.plane.story, len(scene.problems)) == (story, changes), "it is lost once"
    scene.settle()
    assert scene.manager.ready_problems() == [LOST]
    assert [row for row in scene.manager.index() if row.model == "a"] == [IndexRow("a", "1", "UNAVAILABLE", LOST)]
    assert scene.manager.lost == {"fake:0": LOST}


def test_nothing_on_it_is_closed_and_its_memory_is_not_touched() -> None:
    scene = Scene(model("a", 1, settings=ON_FAKE), model("c", 1))
    scene.settle()
    mine = scene.manager.published.lookup("a", "")
    scene.plane.begin(mine.queue_id)
    lose(scene)
    scene.carry_on()
    assert VersionKey("a", 1) in scene.metrics.recorders, "a batch of it is still out there"
    scene.plane.end(mine.queue_id)
    scene.carry_on()
    assert isinstance(mine.backend, Backend)
    assert mine.backend.closed == 0
    assert VersionKey("a", 1) not in scene.metrics.recorders
    assert [backend.key.model for backend in scene.backends.opened] == ["a", "c"], "it was not loaded again"


def test_a_load_for_it_fails_without_touching_it() -> None:
    scene = Scene(model("a", 1, settings=ON_FAKE), mode="explicit", initial=("a",), by_hand=False)
    scene.manager.start()
    try:
        scene.repository.put(model("e", 1, settings=ON_FAKE), model("f", 1))
        scene.manager.load("f", timeout_s=10)
        lose(scene)
        opened = len(scene.backends.tasks)
        for name in ("a", "e"):
            with pytest.raises(
                LoadFailed, match="choose backend: device 'fake:0' is lost: an illegal access: only a new process"
            ):
                scene.manager.load(name, timeout_s=10)
        assert len(scene.backends.tasks) == opened
        assert "a" in str(scene.manager.ready_problems())
        scene.manager.unload("a", timeout_s=10)
        scene.manager.load("f", timeout_s=10)
        assert scene.manager.published.lookup("f", "").device == "cpu"
        # and to another device it may go
        scene.manager.load("e", settings=SETTINGS, timeout_s=10)
        assert scene.manager.published.lookup("e", "").device == "cpu"
    finally:
        assert scene.manager.stop(10)


def test_a_reload_onto_it_leaves_what_serves_elsewhere_alone() -> None:
    scene = Scene(model("a", 1, settings=ON_FAKE), model("c", 1))
    scene.settle()
    lose(scene)
    before = scene.manager.published.lookup("c", "")
    scene.repository.put(model("c", version(1, "b", name="c"), settings=ON_FAKE))
    scene.settle()
    assert scene.manager.published.lookup("c", "") is before
    assert scene.manager.ready_problems() == [LOST]


@pytest.mark.parametrize("wrapped", [False, True])
def test_one_that_breaks_while_a_version_is_loaded_onto_it(wrapped: bool) -> None:
    scene = Scene(model("a", 1, settings=ON_FAKE), model("c", 1))
    scene.settle()
    heard: list[str] = []
    scene.manager._on_device_lost = heard.append

    def breaks(task: LoadTask) -> None:
        if task.key.model == "b" and not wrapped:
            raise DeviceLost("an illegal access")
        if task.key.model == "b":
            raise LoadFailed("an illegal access") from DeviceLost("an illegal access")

    scene.backends.on_open = breaks
    scene.repository.put(model("b", 1, settings=ON_FAKE.model_copy(update={"load_retries": 5})))
    scene.settle()
    said = "device 'fake:0' is lost: open: an illegal access"
    assert heard == [said]
    assert sorted(scene.manager.published.ready) == [VersionKey("c", 1)], "who was READY on it is not any more"
    assert scene.manager.index()[1] == IndexRow("b", "1", "UNAVAILABLE", "open: an illegal access")
    tries = len(scene.backends.tasks)
    scene.clock.pass_s(1000)
    scene.carry_on()
    assert len(scene.backends.tasks) == tries, "another attempt would meet the same dead device"
    assert scene.manager.ready_problems() == [said, "b:1: its backend is dead: open: an illegal access"]


def test_one_that_is_lost_between_the_last_step_of_a_load_and_its_publication() -> None:
    scene = Scene(model("a", 1, settings=ON_FAKE))
    scene.plane.on_open = lambda rules: lose(scene)
    scene.settle()
    assert scene.manager.published.ready == {}
    assert scene.manager.index() == [IndexRow("a", "1", "UNAVAILABLE", LOST)]
    assert [backend.closed for backend in scene.backends.opened] == [0]
    assert scene.plane.story[-1] == ("idle", VersionKey("a", 1)), "nobody waits in a queue that nobody serves"
    assert scene.metrics.recorders == {}


def test_one_that_is_lost_while_a_version_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.lifecycle.manager._QUIESCE_S", 0.0)
    scene = Scene(model("a", 1, settings=ON_FAKE), model("c", 1))
    scene.settle()
    mine = scene.manager.published.lookup("a", "")
    scene.plane.begin(mine.queue_id)
    scene.repository.remove("a")
    scene.settle()
    lose(scene)
    assert (f"fail: 'a' is not at ready state: {LOST}", mine.key) in scene.plane.story
    assert scene.manager.index() == [IndexRow("a", "1", "UNLOADING", ""), IndexRow("c", "1", "READY", "")]
    scene.plane.end(mine.queue_id)
    scene.carry_on()
    assert isinstance(mine.backend, Backend)
    assert mine.backend.closed == 0
    with pytest.raises(NotFound):
        scene.manager.published.lookup("a", "")


def test_one_that_leaves_as_its_device_is_lost_is_failed_whoever_comes_first() -> None:
    """Reported away, and the device lost before its queue is closed: the loss did not see it, so leaving must."""
    scene = Scene(model("a", 1, settings=ON_FAKE))
    scene.settle()
    mine = scene.manager._table.leave(VersionKey("a", 1))
    assert mine is not None
    lose(scene)
    assert not any(story.startswith("fail") for story, _ in scene.plane.story)
    scene.manager._retirement.leave(mine)
    assert scene.plane.story[-1] == (f"fail: 'a' is not at ready state: {LOST}", mine.key)


def test_until_the_initial_load_is_over_nobody_is_told_that_a_model_is_not_there() -> None:
    """A client that tries again what is UNAVAILABLE loses nothing over a start."""
    seen: list[str] = []
    scene = Scene(model("a", 1), model("b", 1, 2, settings=with_policy(policy="all")))

    def look(rules: QueueRules) -> None:
        if seen:
            return
        seen.append(refused(scene, "b"))
        seen.append(refused(scene, "b", "2"))
        with pytest.raises(NotFound):
            scene.manager.published.lookup("stranger", "")

    assert refused(scene, "stranger").endswith("'stranger' is not at ready state: the server is starting")
    scene.plane.on_open = look
    scene.settle()
    assert seen[0] == "Request for unknown model: 'b' is not at ready state: the server is starting"
    assert seen[1] == "Request for unknown model: 'b' version 2 is not at ready state"
    with pytest.raises(NotFound, match="version 7 is not found"):
        scene.manager.published.lookup("b", "7")
    assert scene.manager._table.actual()[VersionKey("b", 2)].state is State.READY


def test_what_callers_loaded_can_be_said_for_the_next_life() -> None:
    scene = Scene(model("a", 1), model("b", 1), mode="explicit", initial=("a",), by_hand=False)
    scene.manager.start()
    try:
        scene.manager.load("b", settings=ON_FAKE, timeout_s=10)
        assert scene.manager.asked == {"a": None, "b": ON_FAKE}
    finally:
        assert scene.manager.stop(10)


def test_a_version_that_is_not_there_may_come_while_the_server_starts() -> None:
    scene = Scene(model("a", 1))
    scene.plane.on_open = lambda rules: seen.append(refused(scene, "a", "9"))
    seen: list[str] = []
    scene.settle()
    assert seen == ["Request for unknown model: 'a' version 9 is not at ready state"]
    with pytest.raises(NotFound, match="version 9 is not found"):
        scene.manager.published.lookup("a", "9")
    assert scene.manager.published.lookup("a", "+01") is scene.manager.published.lookup("a", "")
