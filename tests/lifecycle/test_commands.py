from server.core.versions import State, VersionKey
from server.lifecycle.commands import Command, at_rest, not_polled, outcome
from server.lifecycle.policy import Actual, Failure, Identity, Serve, Wish, identity
from tests.lifecycle.doubles import SETTINGS, Given, Model, model, version

KEY, OTHER = VersionKey("m", 1), VersionKey("other", 1)
FAILURE = Failure(Identity("a", SETTINGS), 1, 0, "warm up: no")
SERVE = Serve(version(1), SETTINGS)


def test_a_model_is_at_rest_when_nothing_more_happens_to_it() -> None:
    served = {KEY: Actual(State.READY, identity(SERVE))}
    assert at_rest("m", {KEY: SERVE}, served, 0)
    assert not at_rest("m", {KEY: SERVE}, {}, 0)
    assert not at_rest("m", {}, served, 0)
    assert not at_rest("m", {}, {KEY: Actual(State.UNLOADING)}, 0)
    # other models do not matter
    assert at_rest("m", {OTHER: SERVE}, {OTHER: Actual(State.LOADING)}, 0)
    # a retry is still to come
    patient = Serve(version(1), SETTINGS.model_copy(update={"load_retries": 1}))
    waiting = {KEY: Actual(State.UNAVAILABLE, None, Failure(identity(patient), 1, 5, "x"))}
    assert not at_rest("m", {KEY: patient}, waiting, 0)


def test_outcomes() -> None:
    load, unload = Command("m", True), Command("m", False)
    found = model("m", 1, version(2, problem="model.onnx is missing"))
    assert outcome(load, {KEY: Actual(State.READY)}, Wish(found)) is None
    assert outcome(unload, {}, None) is None
    none = "failed to load 'm', no version is available"
    assert str(outcome(load, {OTHER: Actual(State.READY)}, None)) == none
    assert str(outcome(load, {}, Wish(model("m")))) == none
    assert str(outcome(load, {}, Wish(found))) == f"{none}: version 2: model.onnx is missing;"
    # the old form still serves, but what was asked for failed
    error = outcome(load, {KEY: Actual(State.READY, failure=FAILURE), OTHER: Actual(State.READY, failure=FAILURE)}, Wish(found))
    assert str(error) == "load failed for model 'm': version 1 is at UNAVAILABLE state: warm up: no;"


def test_a_load_of_other_files_is_done_when_these_serve() -> None:
    load = Command("m", True)
    wish = Wish(model("m", version(1, "given")), elsewhere=True)
    assert outcome(load, {KEY: Actual(State.READY, Identity("given", SETTINGS))}, wish) is None
    before = {KEY: Actual(State.READY, identity(SERVE))}
    assert str(outcome(load, before, wish)) == "failed to load 'm', no version is available"


def test_an_answer_removes_given_files_that_nobody_took_over() -> None:
    command, given = Command("m", True, given=(kept := Given(model("m", 1)))), Given(model("m", 1))
    command.answer()
    assert kept.closed
    command = Command("m", True, given=given)
    command.given = None
    command.answer()
    assert not given.closed


def test_the_reason_follows_tritons_text() -> None:
    text = "failed to load 'm', failed to poll from model repository"
    assert not_polled("m", None) == text
    assert not_polled("m", Model("m")) == text
    assert not_polled("m", Model("m", problem="model.toml: line 3")) == f"{text}: model.toml: line 3"
    assert not_polled("m", None, "disk away") == f"{text}: disk away"
