"""How far a stream was read, what came twice, and what was gone before it was read. **Pure.**

Floor 4. A position is saved together with what was made of everything before it: then a reader that is killed anywhere goes on
exactly where its state is.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.core.versions import VersionKey

START = "0-0"
_ID = re.compile(r"\d{1,20}-\d{1,20}")
_WRITERS = 4096
"""Writers that are remembered, the ones heard of last: a server that starts anew is another writer."""

Place = tuple[VersionKey, str]


@dataclass
class _Writer:
    sequence: int = 0
    rows: dict[Place, int] = field(default_factory=dict)


class StreamPosition:
    """Mutable; one owner. `last`: the id of the last entry that was taken. `is_new`: nothing was ever read.

    Law: each entry of a writer is taken once, the first time it is met, if the writer adds repetitions of earlier entries only.
    """

    def __init__(self) -> None:
        self.last = START
        self.is_new = True
        self._writers: dict[str, _Writer] = {}

    def take(self, entry_id: str, writer: str, sequence: int) -> bool:
        """Go past an entry; whether it is met for the first time."""
        self.last = entry_id
        # the one heard of last is the last: the dictionary's order is who is forgotten first
        known = self._writers.pop(writer, None) or _Writer(sequence - 1 if self.is_new else 0)
        self._writers[writer] = known
        while len(self._writers) > _WRITERS:
            del self._writers[next(iter(self._writers))]
        if sequence <= known.sequence:
            return False
        known.sequence = sequence
        return True

    def missed(self, writer: str, place: Place, before: int, rows: int) -> int:
        """Rows of a version and arm that this writer had added before these `rows`, and that never were met: trimmed, unread.

        A reader without a position begins wherever the stream does, and misses nothing of what was before.
        """
        known = self._writers[writer]
        expected = known.rows.get(place, before if self.is_new else 0)
        known.rows[place] = before + rows
        return max(0, before - expected)

    def started(self) -> None:
        """The stream was read to its end for the first time: from here on, whatever is missing was trimmed."""
        self.is_new = False

    def dump(self) -> bytes:
        """A document that `load` reads."""
        writers = {
            name: [each.sequence, [[key.model, key.version, arm, rows] for (key, arm), rows in each.rows.items()]]
            for name, each in self._writers.items()
        }
        return json.dumps({"last": self.last, "is_new": self.is_new, "writers": writers}).encode()

    @classmethod
    def load(cls, document: bytes) -> "StreamPosition":
        """The position of a document. Raises: ValueError for what `dump` did not write."""
        found = cls()
        try:
            values = json.loads(document)
            found.last, found.is_new = _id(values["last"]), bool(values["is_new"])
            for name, value in values["writers"].items():
                found._writers[name] = _writer(value)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"it is no position in a stream: {error!r}") from None
        return found


def entry_fields(words: Any) -> Mapping[bytes, bytes]:
    """The fields of an entry as a server tells them. Raises: ValueError where there are none that belong together."""
    if not isinstance(words, list) or len(words) % 2 or set(map(type, words)) - {bytes}:
        raise ValueError("an entry without fields")
    return dict(zip(words[::2], words[1::2], strict=True))


def earlier(one: str, other: str) -> bool:
    """Whether an entry's id is before another's.

    >>> earlier("9-5", "10-0"), earlier("10-0", "10-0")
    (True, False)
    """
    return tuple(map(int, one.split("-"))) < tuple(map(int, other.split("-")))


def _id(value: Any) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ValueError(f"{value!r} is no id of an entry")
    return value


def _writer(value: Any) -> _Writer:
    sequence, places = value
    rows = {(VersionKey(str(model), int(version)), str(arm)): int(count) for model, version, arm, count in places}
    return _Writer(int(sequence), rows)
