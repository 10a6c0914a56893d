"""From text to one version: explicit first, then the champion, then the newest; never one that is not there."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import InvalidRequest, NotFound
from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.registry.resolve import resolve, resolve_version
from server.registry.source import FoundModel, FoundVersion

SMALL = st.integers(1, 6)


def model(versions: set[int], aliases: dict[str, int], problem: str | None = None) -> FoundModel:
    found = {
        number: FoundVersion(VersionKey("demo", number), Path(str(number)), "", None, True, None) for number in sorted(versions)
    }
    return FoundModel("demo", Path("demo"), ModelSettings(), found, aliases, problem)


@given(
    st.sets(SMALL),
    st.dictionaries(st.sampled_from(["champion", "challenger"]), SMALL),
    st.sampled_from(["demo", "demo@champion", "demo@challenger"]) | SMALL.map(lambda number: f"demo:{number}"),
)
def test_every_reference_names_the_right_version_or_none(versions: set[int], aliases: dict[str, int], text: str) -> None:
    name, _, alias = text.partition("@")
    if ":" in text:
        wanted = int(text.partition(":")[2])
    elif alias:
        wanted = aliases.get(alias, 0)
    else:
        wanted = aliases.get("champion", max(versions, default=0))
    assert name.startswith("demo")
    try:
        key = resolve({"demo": model(versions, aliases)}, text)
    except NotFound:
        assert wanted not in versions
    else:
        assert key == VersionKey("demo", wanted)
        assert wanted in versions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("other", "there is no model 'other' in the repository; it has: demo"),
        ("demo:9", "model 'demo' has no version 9; it has: 1, 2 (broken)"),
        ("demo@blue", "model 'demo' has no alias 'blue'; it has: champion"),
        ("demo@champion", "model 'demo' has no version 5 (alias 'champion'); it has: 1, 2 (broken)"),
        ("demo", "model 'demo' has no version 5 (alias 'champion'); it has: 1, 2 (broken)"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(text: str, message: str) -> None:
    with pytest.raises(NotFound) as raised:
        resolve({"demo": model({1, 2}, {"champion": 5}, "broken")}, text)
    assert str(raised.value) == message


def test_an_empty_repository_and_an_empty_model() -> None:
    with pytest.raises(NotFound, match="it has: none"):
        resolve({}, "demo")
    with pytest.raises(NotFound, match=r"model 'demo' has no versions$"):
        resolve({"demo": model(set(), {})}, "demo")
    with pytest.raises(NotFound, match="has no version 1; it has: none"):
        resolve({"demo": model(set(), {})}, "demo:1")
    with pytest.raises(NotFound, match="has no alias 'champion'; it has: none"):
        resolve({"demo": model({1}, {})}, "demo@champion")


@pytest.mark.parametrize(("text", "version"), [("1", 1), ("@champion", 2), ("champion", 2)])
def test_an_argument_beside_the_name_is_a_number_or_an_alias(text: str, version: int) -> None:
    assert resolve_version(model({1, 2}, {"champion": 2}), text) == VersionKey("demo", version)


@pytest.mark.parametrize("text", ["", "0", "01", "@3", "1.5", "@", "A"])
def test_an_argument_that_is_neither_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is neither a version"):
        resolve_version(model({1}, {}), text)
