from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.clock import NS_PER_S
from server.core.settings import ModelSettings
from server.core.versions import State, VersionKey
from server.lifecycle.policy import (
    FIRST_BACKOFF_NS,
    LONGEST_BACKOFF_NS,
    Actual,
    ControlMode,
    Failure,
    Identity,
    Keep,
    Load,
    Nothing,
    Reload,
    Serve,
    Unload,
    WaitUntil,
    Wish,
    desired,
    failed,
    identity,
    in_service,
    next_action,
)
from tests.lifecycle.doubles import SETTINGS, Model, Version, model, version, with_policy

K1, K2, K3, K4 = (VersionKey("m", number) for number in (1, 2, 3, 4))


def wanted(found: Model, actual: Mapping[VersionKey, Actual] | None = None, default: int | None = None) -> dict[int, str]:
    result = desired({found.name: found}, "poll", {}, actual or {}, {} if default is None else {found.name: default})
    return {key.version: type(want).__name__ for key, want in result.items()}


def ready(found: Version, model_settings: ModelSettings = SETTINGS) -> Actual:
    return Actual(State.READY, identity(Serve(found, model_settings)))


def given_up(found: Version, model_settings: ModelSettings = SETTINGS, dead: bool = False) -> Actual:
    failure = Failure(identity(Serve(found, model_settings)), model_settings.load_retries + 1, 0, "broken", dead)
    return Actual(State.UNAVAILABLE, None, failure, "broken")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (model("m", 1, 2, 3), {3}),
        (model("m", 1, 2, 3, champion=1), {1}),
        (model("m", 1, 2, 3, champion=1, challenger=3), {1, 3}),
        (model("m", 1, 2, 3, settings=with_policy(policy="latest", count=2)), {2, 3}),
        (model("m", 1, 2, 3, settings=with_policy(policy="latest", count=2), champion=1), {1, 2, 3}),
        (model("m", 1, 2, 3, settings=with_policy(policy="all")), {1, 2, 3}),
        (model("m", 1, 2, 3, settings=with_policy(policy="specific", specific=(1, 9))), {1}),
        (model("m", 1, 2, 3, settings=with_policy(policy="specific", specific=(1,)), champion=2), {1, 2}),
        (model("m"), set()),
    ],
)
def test_version_policies(found: Model, expected: set[int]) -> None:
    assert wanted(found) == dict.fromkeys(expected, "Serve")


def test_versions_that_cannot_be_loaded_take_nobodys_place() -> None:
    assert wanted(model("m", 1, version(2, problem="no digest"))) == {1: "Serve"}
    assert wanted(model("m", 1, version(2, settled=False))) == {1: "Serve"}
    broken = version(2)
    assert wanted(model("m", 1, broken), {K2: given_up(broken)}) == {1: "Serve"}
    # changed files are worth another attempt
    assert wanted(model("m", 1, replace(broken, stamp="b")), {K2: given_up(broken)}) == {2: "Serve"}
    # so is a failure that has retries left
    patient = SETTINGS.model_copy(update={"load_retries": 1})
    once = Actual(State.UNAVAILABLE, None, failed(None, identity(Serve(broken, patient)), 0, "x"))
    assert wanted(model("m", 1, broken, settings=patient), {K2: once}) == {2: "Serve"}


def test_a_dead_backend_is_no_reason_to_load_an_older_version() -> None:
    newest = version(2)
    actual = {K2: given_up(newest, dead=True)}
    found = model("m", 1, newest)
    assert wanted(found, actual) == {2: "Serve"}
    assert next_action(desired({"m": found}, "poll", {}, actual, {}), actual, 10**18) == Nothing()


@pytest.mark.parametrize("fault", [{"problem": "gone bad"}, {"settled": False}])
def test_what_serves_is_kept_when_its_files_go_bad(fault: dict[str, object]) -> None:
    good = version(2)
    bad = replace(good, stamp="b", **fault)  # type: ignore[arg-type] # one field or the other
    assert wanted(model("m", 1, bad), {K2: ready(good)}) == {2: "Keep"}
    assert wanted(model("m", 1, bad, champion=2), {K2: ready(good)}) == {2: "Keep"}


def test_a_model_that_cannot_be_read_keeps_what_serves() -> None:
    good = version(1)
    for broken in (Model("m", None, {1: good}), Model("m", SETTINGS, {}, {}, "model.toml: no")):
        assert wanted(broken, {K1: ready(good)}) == {1: "Keep"}
        assert wanted(broken) == {}


def test_what_serves_is_kept_when_nothing_of_the_choice_can_serve() -> None:
    good = version(1)
    assert wanted(model("m", good, champion=7), {K1: ready(good)}) == {1: "Keep"}
    # but a version whose folder is gone goes
    assert wanted(model("m", version(2, problem="x")), {K1: ready(good)}) == {}


def test_a_challenger_does_not_inherit_the_callers_of_a_champion_that_cannot_load() -> None:
    found = model("m", 1, version(2, problem="x"), 3, champion=2, challenger=3)
    actual = {K1: ready(version(1)), K3: ready(version(3))}
    assert wanted(found, actual, default=1) == {3: "Serve", 1: "Keep"}
    # once the champion serves, the incumbent goes
    mended = model("m", 1, 2, 3, champion=2, challenger=3)
    actual[K2] = ready(version(2))
    assert wanted(mended, actual, default=1) == {2: "Serve", 3: "Serve"}


def test_explicit_mode_serves_wishes_alone_as_they_were_found() -> None:
    then, now = model("m", 1), model("m", 1, 2)
    override = SETTINGS.model_copy(update={"max_batch": 8})
    unsettled = model("n", version(1, settled=False, name="n"))
    result = desired({"m": now, "o": model("o", 1)}, "explicit", {"m": Wish(then, override), "n": Wish(unsettled)}, {}, {})
    assert result == {
        K1: Serve(then.versions[1], override),
        VersionKey("n", 1): Serve(unsettled.versions[1], SETTINGS),
    }


def test_other_files_let_what_serves_leave_only_once_they_serve() -> None:
    given = version(1, "given")
    wish = Wish(model("m", given), elsewhere=True)
    leaving = Actual(State.UNLOADING)
    before = {K1: ready(version(1)), K2: ready(version(2)), K3: leaving}
    assert desired({}, "explicit", {"m": wish}, before, {}) == {K1: Serve(given, SETTINGS), K2: Keep()}
    assert desired({}, "explicit", {"m": wish}, before | {K1: ready(given)}, {}) == {K1: Serve(given, SETTINGS)}
    nothing = Wish(model("m", version(3, "given", problem="x")), elsewhere=True)
    assert desired({}, "explicit", {"m": nothing}, before, {}) == {K1: Keep(), K2: Keep()}
    assert not in_service(wish.found, before)
    assert in_service(wish.found, {K1: ready(given)})


def test_settings_that_only_steer_the_lifecycle_change_no_identity() -> None:
    found = version(1)
    before = identity(Serve(found, SETTINGS))
    steered = with_policy(policy="all").model_copy(update={"load_retries": 5})
    assert identity(Serve(found, steered)) == before
    assert identity(Serve(found, SETTINGS.model_copy(update={"max_batch": 9}))) != before
    assert identity(Serve(replace(found, stamp="b"), SETTINGS)) != before


def test_backoff_doubles_up_to_a_minute_and_begins_anew_with_new_files() -> None:
    first = Identity("a", SETTINGS)
    failure = failed(None, first, 100, "x")
    assert (failure.count, failure.retry_at_ns) == (1, 100 + FIRST_BACKOFF_NS)
    failure = failed(failure, first, 0, "x")
    assert (failure.count, failure.retry_at_ns) == (2, 2 * FIRST_BACKOFF_NS)
    for _ in range(100):
        failure = failed(failure, first, 0, "x")
    assert (failure.count, failure.retry_at_ns) == (102, LONGEST_BACKOFF_NS)
    assert failed(failure, Identity("b", SETTINGS), 0, "x").count == 1


def test_actions() -> None:
    one, two = version(1), version(2)
    serve = Serve(two, SETTINGS)
    assert next_action({}, {}, 0) == Nothing()
    assert next_action({K2: serve}, {}, 0) == Load(K2, serve)
    # available first: the old one goes when the new one serves
    assert next_action({K2: serve}, {K1: ready(one)}, 0) == Load(K2, serve)
    assert next_action({K2: serve}, {K1: ready(one), K2: ready(two)}, 0) == Unload(K1)
    assert next_action({K2: serve}, {K2: ready(two)}, 0) == Nothing()
    assert next_action({K2: Keep()}, {K2: ready(two)}, 0) == Nothing()
    # omission means remove
    assert next_action({}, {K1: ready(one)}, 0) == Unload(K1)
    newer = Serve(replace(two, stamp="b"), SETTINGS)
    assert next_action({K2: newer}, {K2: ready(two)}, 0) == Reload(K2, newer)
    for busy in (State.LOADING, State.UNLOADING):
        assert next_action({K2: serve}, {K2: Actual(busy)}, 0) == Nothing()


def test_a_failed_load_waits_its_turn_then_gives_up_until_something_changes() -> None:
    patient = SETTINGS.model_copy(update={"load_retries": 1})
    found = version(1)
    serve = Serve(found, patient)
    once = failed(None, identity(serve), 0, "x")
    actual = {K1: Actual(State.UNAVAILABLE, None, once)}
    assert next_action({K1: serve}, actual, 0) == WaitUntil(NS_PER_S)
    assert next_action({K1: serve}, actual, NS_PER_S) == Load(K1, serve)
    actual = {K1: Actual(State.UNAVAILABLE, None, failed(once, identity(serve), 0, "x"))}
    assert next_action({K1: serve}, actual, 10**18) == Nothing()
    newer = Serve(replace(found, stamp="b"), patient)
    assert next_action({K1: newer}, actual, 0) == Load(K1, newer)


def test_models_that_serve_nothing_load_first_then_the_newest() -> None:
    serving, idle = VersionKey("a", 1), VersionKey("b", 1)
    serves = {key: Serve(Version(key), SETTINGS) for key in (serving, VersionKey("a", 2), idle, VersionKey("b", 2))}
    actual = {serving: ready(Version(serving))}
    action = next_action(serves, actual, 0)
    assert isinstance(action, Load)
    assert action.key == VersionKey("b", 2)


# A simulated world: files change, loads fail or not, backends die; the loop is driven to rest after every change.

_VERSIONS = st.builds(
    version,
    st.integers(1, 4),
    st.sampled_from(["a", "b", "broken", "flaky"]),
    st.sampled_from([None, None, None, "bad files"]),
    st.sampled_from([True, True, False]),
)
_POLICIES = st.sampled_from(
    [
        SETTINGS,
        SETTINGS.model_copy(update={"load_retries": 2}),
        with_policy(policy="latest", count=2),
        with_policy(policy="all"),
        with_policy(policy="specific", specific=(1, 3)),
    ]
)
_MODELS = st.builds(
    lambda versions, chosen, aliases, problem: Model(
        "m", None if problem else chosen, {each.key.version: each for each in versions}, aliases, problem
    ),
    st.lists(_VERSIONS, max_size=4),
    _POLICIES,
    st.dictionaries(st.sampled_from(["champion", "challenger"]), st.integers(1, 5), max_size=2),
    st.sampled_from([None, None, None, "model.toml"]),
)
_MODES: st.SearchStrategy[ControlMode] = st.sampled_from(["poll", "explicit"])


class World:
    def __init__(self, mode: ControlMode) -> None:
        self.mode: ControlMode = mode
        self.actual: dict[VersionKey, Actual] = {}
        self.default: int | None = None
        self.now_ns = 0

    def drive(self, found: Model | None) -> None:
        """Act until nothing is left to do; every step keeps the promises."""
        models = {} if found is None else {"m": found}
        wishes = {name: Wish(each) for name, each in models.items()} if self.mode == "explicit" else {}
        for _ in range(200):
            defaults = {} if self.default is None else {"m": self.default}
            want = desired(models, self.mode, wishes, self.actual, defaults)
            action = next_action(want, self.actual, self.now_ns)
            match action:
                case Nothing():
                    self.check_rest(want)
                    return
                case WaitUntil(ns):
                    assert ns > self.now_ns
                    self.now_ns = ns
                case Load(key, serve) | Reload(key, serve):
                    assert (key in self.ready()) == isinstance(action, Reload)
                    assert serve.found.problem is None
                    self.try_load(key, serve)
                case Unload(key):
                    left = self.ready() - {key}
                    assert key not in want
                    assert not want or left & want.keys(), "the last READY version of a model that should serve"
                    self.actual[key] = Actual(State.UNAVAILABLE)
            self.default = max((key.version for key in self.ready()), default=None)
        raise AssertionError("the world does not come to rest")

    def ready(self) -> set[VersionKey]:
        return {key for key, state in self.actual.items() if state.state is State.READY}

    def try_load(self, key: VersionKey, serve: Serve) -> None:
        state = self.actual.get(key, Actual(State.UNKNOWN))
        attempts = state.failure.count if state.failure and state.failure.identity == identity(serve) else 0
        if serve.found.stamp == "broken" or (serve.found.stamp == "flaky" and attempts < 2):
            assert attempts <= serve.settings.load_retries
            failure = failed(state.failure, identity(serve), self.now_ns, "x")
            following = State.READY if state.state is State.READY else State.UNAVAILABLE
            self.actual[key] = replace(state, state=following, failure=failure)
        else:
            self.actual[key] = Actual(State.READY, identity(serve))

    def check_rest(self, want: Mapping[VersionKey, object]) -> None:
        if not want:
            assert not self.ready()
        for key, each in want.items():
            state = self.actual.get(key)
            if isinstance(each, Serve) and (state is None or state.identity != identity(each)):
                assert state is not None
                assert state.failure is not None, "neither served nor tried"


@settings(max_examples=400, deadline=None)
@given(_MODES, st.lists(st.tuples(st.none() | _MODELS, st.booleans()), min_size=1, max_size=6))
def test_every_world_comes_to_rest_and_keeps_its_promises(mode: ControlMode, history: list[tuple[Model | None, bool]]) -> None:
    world = World(mode)
    for found, somebody_dies in history:
        world.drive(found)
        world.drive(found)
        if somebody_dies and world.ready():
            key = max(world.ready())
            before = world.actual[key].identity
            assert before is not None
            world.actual[key] = Actual(State.UNAVAILABLE, None, Failure(before, 1, 0, "died", dead=True))
            world.drive(found)
    world.drive(None)
    assert not world.ready()


@settings(max_examples=200, deadline=None)
@given(_MODELS)
def test_a_model_without_aliases_serves_the_same_after_a_restart(found: Model) -> None:
    plain = replace(found, aliases={})
    running = World("poll")
    running.drive(replace(plain, versions={}))
    for count in range(1, len(plain.versions) + 1):  # versions arrive one after the other
        running.drive(replace(plain, versions=dict(sorted(plain.versions.items())[:count])))
    restarted = World("poll")
    restarted.drive(plain)
    if restarted.ready():
        assert running.ready() >= restarted.ready()
