"""One version on several devices: loaded on all of them, one version to everybody, and going on without one that is lost."""

from dataclasses import replace
from pathlib import Path

import pytest

from server.core.errors import DeviceLost, LoadFailed
from server.core.settings import ModelSettings
from server.core.versions import State, VersionKey
from server.lifecycle.policy import Serve
from server.lifecycle.replica import Loaded, OnDevice, queue_rules, replica_of
from tests.lifecycle.doubles import SETTINGS, Backend, Golden, Leases, Manifest, Recorder, Version, model
from tests.lifecycle.test_loader import KEY as LOADED
from tests.lifecycle.test_loader import Scene as Loading
from tests.lifecycle.test_manager import Scene

KEY = VersionKey("m", 1)
FAKE = {"fake": {"device": "accelerator"}}
TWO = ModelSettings.model_validate(SETTINGS.model_dump() | FAKE | {"devices": (0, 2)})


def on(device: str) -> Backend:
    backend = Backend(KEY)
    backend.device = device
    return backend


def scene(settings: ModelSettings = TWO) -> Scene:
    made = Scene(model("m", 1, settings=settings))
    made.settle()
    return made


def test_siblings_have_all_in_common_but_their_device() -> None:
    loaded = Loaded(on("fake:0"), (1, 2), (5, 6), further=(OnDevice(on("fake:2"), (7, 8)),))
    first = replica_of([12, 13], Serve(Version(KEY), TWO), loaded, Recorder())
    (second,) = first.siblings
    assert loaded.backends == (first.backend, second.backend)
    assert [each.device for each in first.everywhere] == ["fake:0", "fake:2"]
    assert [(each.queue_id, each.entrance) for each in first.everywhere] == [(12, 12), (13, 12)]
    assert (first.costs_ns, second.costs_ns) == ((5, 6), (7, 8))
    assert (second.recorder, second.cache, second.signature) == (first.recorder, first.cache, first.signature)
    rules = [queue_rules(each) for each in first.everywhere]
    assert [(each.device, each.entrance, each.costs_ns) for each in rules] == [("fake:0", 12, (5, 6)), ("fake:2", 12, (7, 8))]
    left = first.without(first)
    assert left is not None
    assert (left.queue_id, left.entrance, left.siblings, left.lost) == (13, 12, (), ("fake:0",))
    assert left.without(second) is None


def test_every_device_is_opened_warmed_and_proven() -> None:
    loading = Loading()
    settings = replace_settings(devices=(3, 1), instances=2)
    loaded = loading.load(Version(LOADED, manifest=Manifest(Golden("g.npz"))), settings)
    assert [backend.device for backend in loaded.backends] == ["fake:3", "fake:1"]
    placed = [(task.settings.fake.device_id, task.settings.torch.device_id) for task in loading.backends.tasks]
    assert placed == [(3, 3), (3, 3), (1, 1), (1, 1)]
    assert len(loading.warmed) == 4
    assert [len(backend.ran) for backend in loading.backends.opened] == [1] * 4  # the golden examples
    assert [loaded.costs_ns, *(each.costs_ns for each in loaded.further)] == [(10, 20, 40)] * 2
    for backend in loaded.backends:
        backend.close()
    assert loading.backends.alive() == []


def replace_settings(**changes: object) -> ModelSettings:
    return ModelSettings.model_validate(SETTINGS.model_dump() | FAKE | changes)


@pytest.mark.parametrize("step", ["open on fake:2", "warm up on fake:2", "golden examples on fake:2"])
def test_a_failure_on_one_device_fails_the_load_and_names_it(step: str) -> None:
    loading = Loading()
    opened = loading.backends.opened

    def open_second(task: object) -> None:
        if len(opened) == 1 and step.startswith("open"):
            raise LoadFailed("no such device")

    loading.backends.on_open = open_second
    warm = loading.warm
    if step.startswith("warm"):

        def warm_second(backend: Backend, *rest: object) -> tuple[int, ...]:
            if backend.device == "fake:2":
                raise LoadFailed("too slow")
            return warm(backend, *rest)  # type: ignore[arg-type]

        loading.warm = warm_second  # type: ignore[method-assign,assignment]
    if step.startswith("golden"):
        prove = loading.load_golden

        def golden_second(path: Path) -> object:
            if any(backend.ran for backend in opened):
                raise LoadFailed("differs")
            return prove(path)

        loading.load_golden = golden_second  # type: ignore[method-assign,assignment]
    with pytest.raises(LoadFailed, match=rf"^{step}: "):
        loading.load(Version(LOADED, manifest=Manifest(Golden("g.npz"))), TWO)
    assert loading.backends.alive() == []
    assert loading.leases.out == []


def test_several_devices_are_not_for_the_cpu() -> None:
    loading = Loading()
    with pytest.raises(LoadFailed, match="choose backend: 'devices' is set, but this model runs on the CPU"):
        loading.load(Version(LOADED), SETTINGS.model_copy(update={"devices": (0, 1)}))
    assert loading.backends.tasks == []


def test_nothing_is_opened_where_one_of_the_devices_is_known_to_be_lost() -> None:
    loading = Loading()
    with pytest.raises(LoadFailed, match=r"^choose backend: it broke: only a new process can use it again$") as failed:
        loading.load(Version(LOADED), TWO, fake_2="it broke")
    assert failed.value.device_lost == "fake:2"
    assert loading.backends.tasks == []


def test_what_was_opened_elsewhere_is_closed_when_a_device_is_lost_in_a_load() -> None:
    loading = Loading()

    def break_second(task: object) -> None:
        if len(loading.backends.opened) == 1:
            raise DeviceLost("an illegal access")

    loading.backends.on_open = break_second
    with pytest.raises(LoadFailed, match=r"^open on fake:2: an illegal access$") as failed:
        loading.load(Version(LOADED), TWO)
    assert failed.value.device_lost == "fake:2"
    assert loading.backends.alive() == []


@pytest.mark.parametrize("lost", [0, 2])
def test_a_lost_device_takes_its_part_of_every_version_along(lost: int) -> None:
    there = scene()
    first, second = (rules.handle for rules in there.plane.rules.values())
    gone, stays = (first, second) if lost == 0 else (second, first)
    there.manager.lose_device(f"fake:{lost}", "an illegal access")
    assert there.plane.moved == [gone.queue_id]  # first to the sibling, then what is left is told
    assert there.plane.closed == {gone.queue_id}
    there.settle()
    assert there.ready() == [1]
    published = there.manager.published.lookup("m", "")
    assert ([each.queue_id for each in published.everywhere], published.lost) == ([stays.queue_id], (gone.device,))
    (row,) = there.manager.index()
    assert row.reason.startswith(f"does not serve on fake:{lost} any more: device 'fake:{lost}' is lost")
    there.manager.lose_device(stays.device, "an illegal access")
    there.settle()
    assert there.ready() == []


def test_one_that_is_lost_before_its_version_is_published_fails_the_load() -> None:
    there = Scene(model("m", 1, settings=TWO))
    there.plane.on_open = lambda rules: there.manager.lose_device("fake:2", "gone")
    there.settle()
    assert there.ready() == []
    (row,) = there.manager.index()
    assert "device 'fake:2' is lost" in row.reason
    assert there.plane.rules == {}


def test_a_version_has_a_queue_per_device_and_is_one_version() -> None:
    there = scene()
    rules = list(there.plane.rules.values())
    assert [(each.device, each.entrance == rules[0].queue_id) for each in rules] == [("fake:0", True), ("fake:2", True)]
    assert there.ready() == [1]
    assert there.metrics.recorders[KEY].memory_bytes == 2000
    there.repository.remove("m")
    there.settle()
    assert there.plane.rules == {}
    assert there.backends.alive() == []
    assert there.ready() == []


def test_a_reload_takes_every_old_queue_away() -> None:
    there = scene()
    old = set(there.plane.rules)
    there.repository.put(model("m", Version(KEY, stamp="b"), settings=TWO))
    there.settle()
    assert len(there.plane.rules) == 2
    assert not old & set(there.plane.rules)
    assert len(there.backends.alive()) == 2


def test_nothing_is_closed_before_every_device_is_idle() -> None:
    there = scene()
    first, second = there.plane.rules
    there.plane.begin(second)
    published = there.manager.published.lookup("m", "")
    there.repository.remove("m")
    there.settle()
    assert there.backends.alive() == [KEY, KEY]
    assert published.queue_id == first
    there.plane.end(second)
    there.settle()
    assert there.backends.alive() == []


@pytest.mark.parametrize("lost", [0, 1])
def test_a_version_serves_on_without_a_device_and_says_so(lost: int) -> None:
    there = scene()
    handles = [rules.handle for rules in there.plane.rules.values()]
    gone, stays = handles[lost], handles[1 - lost]
    there.manager.mark_dead(gone, "an illegal memory access")
    there.manager.mark_dead(gone, "an illegal memory access")
    assert there.plane.closed == {gone.queue_id}
    assert set(there.plane.moved) == {gone.queue_id}  # what waits there has somewhere to go
    there.settle()
    assert there.ready() == [1]
    assert there.manager.ready_problems() == []
    published = there.manager.published.lookup("m", "")
    assert [each.queue_id for each in published.everywhere] == [stays.queue_id]
    assert (published.entrance, published.lost) == (handles[0].entrance, (gone.device,))
    assert [backend.closed for backend in there.backends.opened] == [int(index == lost) for index in range(2)]
    assert there.metrics.recorders[KEY].memory_bytes == 1000
    (row,) = there.manager.index()
    assert (row.state, row.reason) == (State.READY, f"does not serve on {gone.device} any more: an illegal memory access")
    # and without the last one it is dead
    there.manager.mark_dead(stays, "power")
    there.settle()
    assert there.ready() == []
    assert there.manager.ready_problems() == ["m:1: its backend is dead: power"]
    assert there.backends.alive() == []
    assert there.metrics.recorders == {}


def test_a_new_load_is_on_every_device_again() -> None:
    there = scene()
    there.manager.mark_dead(next(iter(there.plane.rules.values())).handle, "lost")
    there.repository.put(model("m", Version(KEY, stamp="b"), settings=TWO))
    there.settle()
    assert [rules.device for rules in there.plane.rules.values()] == ["fake:0", "fake:2"]
    (row,) = there.manager.index()
    assert row.reason == ""


def test_a_lease_outlives_the_last_device() -> None:
    there = scene()
    leases = Leases()
    lease = leases(Path("somewhere"))
    table, retirement = there.manager._table, there.manager._retirement
    bare = there.manager.published.lookup("m", "")
    both = replace(bare, lease=lease, siblings=tuple(replace(each, lease=lease) for each in bare.siblings))
    table._replicas[KEY] = both
    first, second = both.everywhere
    there.plane.begin(first.queue_id)
    there.manager.mark_dead(first, "lost")  # it executes still
    assert table.leave(KEY) is not None
    retirement.leave(replace(second, siblings=()))
    retirement.close_idle()
    assert leases.out == [Path("somewhere")]
    there.plane.end(first.queue_id)
    retirement.close_idle()
    assert leases.out == []
