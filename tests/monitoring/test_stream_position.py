"""What came twice is known, what was gone is counted, and both survive the reader."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.versions import VersionKey
from server.monitoring.stream_position import StreamPosition, entry_fields

PLACE = (VersionKey("fraud", 3), "champion")


def reading(*entries: tuple[str, int]) -> list[bool]:
    position = StreamPosition()
    return [position.take(f"{at}-0", *entry) for at, entry in enumerate(entries, 1)]


def test_what_comes_twice_is_taken_once() -> None:
    assert reading(("a", 1), ("b", 1), ("a", 1), ("a", 2), ("b", 1)) == [True, True, False, True, False]


@given(st.data())
def test_two_copies_of_a_writers_entries_are_one_however_they_interleave(data: st.DataObject) -> None:
    """A connection is lost after its entries were sent: the server may carry them out late, between the repeated ones."""
    count = data.draw(st.integers(1, 6))
    from_first = data.draw(st.sets(st.integers(0, 2 * count - 1), min_size=count, max_size=count))
    copies = [iter(range(1, count + 1)), iter(range(1, count + 1))]
    met = [next(copies[at in from_first]) for at in range(2 * count)]
    taken = reading(*(("a", sequence) for sequence in met))
    assert [sequence for sequence, new in zip(met, taken, strict=True) if new] == list(range(1, count + 1))


def test_a_new_reader_misses_nothing_of_what_was_before_it() -> None:
    position = StreamPosition()
    assert position.take("1-0", "a", 500)
    assert position.missed("a", PLACE, 10_000, 7) == 0
    assert position.take("2-0", "a", 502)
    assert position.missed("a", PLACE, 10_020, 7) == 13


def test_after_the_first_end_a_new_writers_missing_rows_were_trimmed() -> None:
    position = StreamPosition()
    position.started()
    assert position.take("1-0", "a", 3)
    assert position.missed("a", PLACE, 40, 2) == 40
    assert position.missed("a", (PLACE[0], "shadow"), 0, 5) == 0


def test_rows_that_were_given_up_and_came_after_all_are_not_missed() -> None:
    position = StreamPosition()
    position.started()
    for sequence in (1, 2):  # the second was counted as lost by its writer, who goes on as if it had not been
        assert position.take(f"{sequence}-0", "a", sequence)
        assert position.missed("a", PLACE, 0, 5) == 0


def test_it_survives_its_reader() -> None:
    position = StreamPosition()
    position.take("7-1", "a", 3)
    position.missed("a", PLACE, 0, 9)
    position.started()
    again = StreamPosition.load(position.dump())
    assert again.dump() == position.dump()
    assert (again.last, again.is_new) == ("7-1", False)
    assert not again.take("8-0", "a", 3)
    assert again.missed("a", PLACE, 11, 1) == 2


def test_writers_that_were_not_heard_of_for_long_are_forgotten() -> None:
    position = StreamPosition()
    position.take("1-0", "first", 1)
    for at, name in enumerate(itertools.chain(["heard"], map(str, range(4094)), ["heard", "more"]), 2):
        position.take(f"{at}-0", name, at)
    known = json.loads(position.dump())["writers"]
    assert len(known) == 4096
    assert "first" not in known
    assert "heard" in known


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"last": "7", "is_new": true, "writers": {}}',
        b'{"last": 7, "is_new": true, "writers": {}}',
        b'{"last": "7-0", "is_new": true, "writers": []}',
        b'{"last": "7-0", "is_new": true, "writers": {"a": 5}}',
        b'{"last": "7-0", "is_new": true, "writers": {"a": [1, [["m", 1, "c"]]]}}',
        b'{"last": "7-0", "is_new": true, "writers": {"a": ["x", []]}}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_position_is_refused(document: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        StreamPosition.load(document)


@pytest.mark.parametrize("words", [None, [b"a"], [b"a", 1], b"ab"])
def test_an_entry_has_fields(words: object) -> None:
    with pytest.raises(ValueError, match="fields"):
        entry_fields(words)
