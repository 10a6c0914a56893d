from server.core.versions import State, VersionKey
from server.lifecycle.policy import Actual, Identity
from server.lifecycle.wishes import Wishes
from tests.lifecycle.doubles import SETTINGS, Given, Model, model, version

KEY = VersionKey("m", 1)
PLAIN = model("m", 1, champion=1)


def given(stamp: str) -> Given:
    return Given(model("m", version(1, stamp)))


def serving(stamp: str) -> dict[VersionKey, Actual]:
    return {KEY: Actual(State.READY, Identity(stamp, SETTINGS))}


def test_a_plain_load_is_never_on_probation() -> None:
    wishes = Wishes()
    wishes.ask(PLAIN)
    wishes.ask(PLAIN, SETTINGS)
    assert not wishes.settle("m", {})
    (wish,) = wishes.current().values()
    assert (wish.found, wish.settings, wish.elsewhere) == (PLAIN, SETTINGS, False)
    assert wishes.given == {}
    wishes.withdraw("m")
    wishes.withdraw("m")
    assert wishes.current() == {}


def test_initial_models_that_cannot_be_loaded_are_named() -> None:
    wishes = Wishes(("m", "bad", "typo"))
    bad = Model("bad", None, problem="no")
    missing = wishes.begin({"m": PLAIN, "bad": bad})
    assert wishes.begun
    assert list(missing) == ["bad", "typo"]
    assert list(wishes.current()) == ["m"]
    everything = Wishes(["*"])
    assert list(everything.begin({"m": PLAIN, "bad": bad})) == ["bad"]
    assert list(everything.current()) == ["m"]


def test_what_callers_loaded_is_asked_for_again_with_its_settings_and_what_they_unloaded_is_not() -> None:
    before, found = Wishes(("m", "n", "o")), {name: model(name, 1) for name in ("m", "n", "o", "p", "q")}
    before.begin(found)
    before.withdraw("o")
    before.ask(found["p"], SETTINGS)
    before.ask(found["q"], None, Given(found["q"]))
    asked = before.from_repository
    assert asked == {"m": None, "n": None, "p": SETTINGS}, "given files are in no repository"
    before.close()
    assert asked == {"m": None, "n": None, "p": SETTINGS}
    after = Wishes(("m", "n", "o"), asked)
    assert after.begin(found) == {}
    assert {name: wish.settings for name, wish in after.current().items()} == asked
    nothing = Wishes(("m",), {})
    assert nothing.begin(found) == {}
    assert nothing.current() == {}


def test_given_files_replace_what_was_before_only_once_they_serve() -> None:
    wishes, first, second = Wishes(), given("first"), given("second")
    wishes.ask(PLAIN)
    wishes.ask(first.found, SETTINGS, first, serving("a"))
    assert wishes.given == {"m": first.found}
    assert wishes.current()["m"].elsewhere
    assert wishes.aliases() == {"m": {"champion": 1}}
    assert wishes.settle("m", serving("first"))
    assert wishes.aliases() == {"m": {}}
    assert not wishes.settle("m", {})
    # the second fails: the first is what it was, and can still be loaded
    wishes.ask(second.found, SETTINGS, second, serving("first"))
    assert not wishes.settle("m", serving("first"))
    assert (first.closed, second.closed) == (False, True)
    assert wishes.current()["m"].found is first.found
    assert wishes.given == {"m": first.found}
    third = given("third")
    wishes.ask(third.found, SETTINGS, third, serving("first"))
    assert not first.closed
    assert wishes.settle("m", serving("third"))
    assert (first.closed, third.closed) == (True, False)
    wishes.close()
    assert third.closed
    assert (wishes.given, wishes.current()) == ({}, {})


def test_given_files_that_fail_first_leave_nothing() -> None:
    wishes, mine = Wishes(), given("x")
    wishes.ask(mine.found, SETTINGS, mine)
    assert not wishes.settle("m", {KEY: Actual(State.UNAVAILABLE)})
    assert mine.closed
    assert (wishes.given, wishes.current()) == ({}, {})


def test_back_to_the_repository() -> None:
    wishes, mine = Wishes(), given("x")
    wishes.ask(mine.found, SETTINGS, mine)
    wishes.settle("m", serving("x"))
    wishes.ask(PLAIN, None, None, serving("x"))
    assert wishes.current()["m"].elsewhere
    assert wishes.given == {}
    assert not wishes.settle("m", serving("x"))
    assert wishes.given == {"m": mine.found}
    wishes.ask(PLAIN, None, None, serving("x"))
    assert wishes.settle("m", serving("a"))
    assert mine.closed
    wishes.ask(PLAIN, None, None, serving("a"))
    assert not wishes.current()["m"].elsewhere


def test_a_load_that_another_overtakes_is_judged_by_what_serves() -> None:
    wishes, first, second, third = Wishes(), given("first"), given("second"), given("third")
    wishes.ask(first.found, SETTINGS, first)
    wishes.ask(second.found, SETTINGS, second, {})
    assert first.closed
    wishes.ask(third.found, SETTINGS, third, serving("second"))
    assert (second.closed, third.closed) == (False, False)
    wishes.withdraw("m")
    assert (second.closed, third.closed) == (True, True)
