import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import InvalidRequest, NotFound, NotReady
from server.core.versions import State, VersionKey
from server.lifecycle.published import EMPTY, Published, parse_version, publish
from server.lifecycle.replica import Replica
from tests.lifecycle.doubles import replica


def table(*ready: int, others: tuple[int, ...] = (), before: Published = EMPTY, **aliases: int) -> Published:
    replicas = {VersionKey("m", number): replica(VersionKey("m", number), number) for number in ready}
    states = dict.fromkeys(replicas, State.READY) | {VersionKey("m", number): State.LOADING for number in others}
    return publish(replicas, states, {"m": aliases}, before)


def found(published: Published, version: str) -> int:
    return published.lookup("m", version).key.version


def test_numbers_aliases_and_the_default() -> None:
    published = table(1, 2, 3, champion=2, old=1)
    assert found(published, "3") == found(published, "+3") == found(published, "03") == 3
    assert found(published, "champion") == found(published, "") == 2
    assert found(published, "old") == 1
    assert published.ready_versions("m") == (1, 2, 3)
    assert published.ready_versions("other") == ()


def test_an_alias_that_looks_like_a_number_does_not_hide_the_version() -> None:
    aliases = {"m": {"1": 2, "9": 2, "": 1}}
    replicas = {VersionKey("m", number): replica(VersionKey("m", number)) for number in (1, 2)}
    published = publish(replicas, dict.fromkeys(replicas, State.READY), aliases, EMPTY)
    assert found(published, "1") == 1
    assert found(published, "") == 2
    with pytest.raises(NotFound, match="version 9 is not found"):
        published.lookup("m", "9")


@pytest.mark.parametrize(
    ("model", "version", "error", "text"),
    [
        ("foo", "", NotFound, "Request for unknown model: 'foo' is not found"),
        ("foo", "1", NotFound, "Request for unknown model: 'foo' is not found"),
        ("m", "99", NotFound, "Request for unknown model: 'm' version 99 is not found"),
        ("m", "0", NotFound, "Request for unknown model: 'm' version 0 is not found"),
        ("m", "3", NotReady, "Request for unknown model: 'm' version 3 is not at ready state"),
        ("m", "next", NotReady, "Request for unknown model: 'm' version 3 is not at ready state"),
        ("m", "lost", NotFound, "Request for unknown model: 'm' version 8 is not found"),
        (
            "m",
            "x",
            InvalidRequest,
            "failed to get model version from specified version string 'x' (details: stol), version should be an"
            " integral value > 0",
        ),
        ("m", "-1", InvalidRequest, "invalid model version specified '-1' , version should be an integral value > 0"),
        ("empty", "", NotFound, "Request for unknown model: 'empty' has no available versions"),
    ],
)
def test_errors_have_tritons_texts(model: str, version: str, error: type[Exception], text: str) -> None:
    one = VersionKey("m", 1)
    states = {one: State.READY, VersionKey("m", 3): State.LOADING}
    published = publish({one: replica(one)}, states, {"m": {"next": 3, "lost": 8}, "empty": {}}, EMPTY)
    with pytest.raises(error) as raised:
        published.lookup(model, version)
    assert str(raised.value) == text


@pytest.mark.parametrize("version", [str(2**63), "9" * 5000, "1.5", "1_0", " 1", "１", "1\n", "--1", "+"])
def test_what_is_no_64_bit_number_is_no_version(version: str) -> None:
    with pytest.raises(InvalidRequest, match="details: stol"):
        parse_version(version)


def test_the_default_waits_for_the_champion() -> None:
    assert table(1, 2).defaults == {"m": 2}
    before = table(1, champion=1)
    # the champion has moved to a version that is not READY yet: what served goes on, although a newer one is READY
    moving = table(1, 3, others=(2,), before=before, champion=2)
    assert moving.defaults == {"m": 1}
    assert table(1, 2, 3, before=moving, champion=2).defaults == {"m": 2}
    # what served before has gone
    assert table(3, others=(2,), before=moving, champion=2).defaults == {"m": 3}
    assert table(3, champion=9).defaults == {"m": 3}
    assert table(others=(2,), before=moving, champion=2).defaults == {}


@given(
    st.sets(st.integers(1, 6)),
    st.sets(st.integers(1, 6)),
    st.dictionaries(st.sampled_from(["champion", "shadow"]), st.integers(1, 7)),
    st.sampled_from(["", "1", "2", "5", "7", "champion", "shadow", "other"]),
)
def test_whatever_is_found_is_ready(ready: set[int], others: set[int], aliases: dict[str, int], version: str) -> None:
    published = table(*ready, others=tuple(others - ready), before=table(1, 2), **aliases)
    try:
        answer: Replica | None = published.lookup("m", version)
    except (NotFound, NotReady, InvalidRequest):
        answer = None
    if version == "":
        assert (answer is None) == (not ready)
    if answer is not None:
        assert answer.key.version in ready
        assert version in ("", str(answer.key.version)) or aliases[version] == answer.key.version
