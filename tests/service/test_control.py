import pytest

from server.core.errors import InvalidRequest, NotFound, NotReady
from server.core.settings import ModelSettings
from server.core.versions import State, VersionKey
from server.lifecycle.found import Given
from server.lifecycle.index import IndexRow
from server.lifecycle.published import EMPTY, Published, publish
from server.service.control import Control, Description
from tests.lifecycle.doubles import SETTINGS, replica

M1, M2, N2 = VersionKey("m", 1), VersionKey("m", 2), VersionKey("n", 2)
REPLICAS = {key: replica(key) for key in (N2, M2, M1)}


class Lifecycle:
    """Says what serves, and writes down what it is asked."""

    def __init__(self) -> None:
        states = dict.fromkeys(REPLICAS, State.READY) | {VersionKey("m", 3): State.LOADING}
        self.published: Published = publish(REPLICAS, states, {"m": {"champion": 1}, "n": {}, "empty": {}}, EMPTY)
        self.asked: list[tuple[str, str, ModelSettings | None, float | None]] = []
        self.given: list[Given | None] = []

    def index(self) -> list[IndexRow]:
        return [IndexRow("m", "1", "READY", ""), IndexRow("m", "3", "LOADING", ""), IndexRow("bare", "", "", "")]

    def settings_on_disk(self, model: str) -> ModelSettings:
        return SETTINGS if model == "m" else ModelSettings()

    def load(
        self,
        model: str,
        settings: ModelSettings | None = None,
        timeout_s: float | None = None,
        given: Given | None = None,
    ) -> None:
        self.asked.append(("load", model, settings, timeout_s))
        self.given.append(given)

    def unload(self, model: str, timeout_s: float | None = None) -> None:
        self.asked.append(("unload", model, None, timeout_s))


def test_readiness_of_a_model() -> None:
    control = Control(Lifecycle())
    assert control.is_ready("m", "")
    assert control.is_ready("m", "2")
    assert control.is_ready("m", "champion")
    for model, version in [("m", "3"), ("m", "9"), ("nobody", ""), ("nobody", "1"), ("empty", "")]:
        assert not control.is_ready(model, version)
    with pytest.raises(InvalidRequest, match="integral value"):
        control.is_ready("m", "x")


def test_a_description_is_of_the_version_that_answers() -> None:
    control = Control(Lifecycle())
    assert control.describe("m", "") == Description("m", (1, 2), REPLICAS[M1])
    assert control.describe("m", "2") == Description("m", (1, 2), REPLICAS[M2])
    with pytest.raises(NotFound, match="'nobody' is not found"):
        control.describe("nobody", "")
    with pytest.raises(NotReady, match="version 3 is not at ready state"):
        control.describe("m", "3")


def test_the_index_may_be_of_what_serves_alone() -> None:
    control = Control(Lifecycle())
    assert len(control.index(ready_only=False)) == 3
    assert control.index(ready_only=True) == [IndexRow("m", "1", "READY", "")]


def test_statistics_name_versions_by_number() -> None:
    control = Control(Lifecycle())
    assert control.statistics("", "") == [REPLICAS[M1], REPLICAS[M2], REPLICAS[N2]]
    assert control.statistics("", "2") == [REPLICAS[M2], REPLICAS[N2]]
    assert control.statistics("m", "") == [REPLICAS[M1], REPLICAS[M2]]
    assert control.statistics("m", "2") == [REPLICAS[M2]]
    assert control.statistics("m", "champion") == [REPLICAS[M1]]
    for model, version, text in [
        ("nobody", "", "Request for unknown model: 'nobody' is not found"),
        ("m", "9", "Request for unknown model: 'm' version 9 is not found"),
        ("empty", "", "Request for unknown model: 'empty' has no available versions"),
    ]:
        with pytest.raises(NotFound) as raised:
            control.statistics(model, version)
        assert str(raised.value) == text
    with pytest.raises(InvalidRequest, match="integral value"):
        control.statistics("", "x")


def test_settings_on_disk_are_those_of_the_lifecycle() -> None:
    assert Control(Lifecycle()).settings_on_disk("m") == SETTINGS


def test_load_and_unload_are_passed_on_with_their_time() -> None:
    lifecycle = Lifecycle()
    control = Control(lifecycle, load_timeout_s=60)
    control.load("m", SETTINGS)
    control.load("m")
    control.unload("m")
    assert lifecycle.asked == [("load", "m", SETTINGS, 60), ("load", "m", None, 60), ("unload", "m", None, 60)]


def test_files_are_handed_over_in_a_folder_of_their_own() -> None:
    lifecycle = Lifecycle()
    control = Control(lifecycle)
    control.load("m", SETTINGS, {"2/model.onnx": b"abc"})
    (given,) = lifecycle.given
    assert given is not None
    try:
        assert (given.found.versions[2].folder / "model.onnx").read_bytes() == b"abc"
    finally:
        given.close()
    control.load("m", SETTINGS, {})
    assert lifecycle.given == [given, None]
    for name, path in (("../m", "1/model.onnx"), ("m", "../model.onnx")):
        with pytest.raises(InvalidRequest, match="path traversal"):
            control.load(name, SETTINGS, {path: b""})
    assert len(lifecycle.asked) == 2


@pytest.mark.parametrize("name", ["../m", "..", ".", "a/b", "a\\b", "/etc", "m\0"])
def test_names_that_leave_the_repository_are_refused(name: str) -> None:
    lifecycle = Lifecycle()
    for ask in (Control(lifecycle).load, Control(lifecycle).unload):
        with pytest.raises(InvalidRequest, match="model name must not contain path traversal characters"):
            ask(name)
    assert lifecycle.asked == []


def test_an_empty_name_is_refused_with_tritons_text() -> None:
    lifecycle = Lifecycle()
    for ask in (Control(lifecycle).load, Control(lifecycle).unload):
        with pytest.raises(InvalidRequest, match=r"^Model name cannot be empty\. Please enter a valid name to deploy\.$"):
            ask("")
    assert lifecycle.asked == []
