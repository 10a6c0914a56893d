"""From join keys to the keys of rows in a store. **Pure.**

    f1:<project>:{<entity>:<typed id>}:<view>@<version>

`f1` is the row format. What stands in braces decides the slot in a cluster, so the rows of all views of one entity are on one
node. The typed id has one part per join key, joined by `|`: `i` and the decimal integer, or `s` and the bytes. The integer 1
and the text "1" are two entities, and 1 is one entity whatever width it comes in. Bytes that would break the key, or a line
of a log, are written `%XX`; UTF-8 stays readable.
"""

import re
from functools import lru_cache

import numpy as np

from feature_client.errors import EntityError
from feature_client.schema import Array, Columns, Entity
from feature_client.view import View

MAX_VALUE_BYTES = 512
"""The longest join key of type bytes, before escaping."""

_UNSAFE = re.compile(rb"[\x00-\x20%:{|}\x7f]")
_INT64 = np.iinfo(np.int64)


def row_keys(project: str, view: View, keys: Columns) -> list[bytes]:
    """The key of each row of a stored view.

    Shapes: `keys` has a column `[N]` for each join key of the view's entity; others are not looked at. Integers of any width;
    bytes as Python `bytes`. Raises: EntityError, naming the first row that has a value that cannot be a join key, or the
    column that cannot be one at all.
    """
    entity, before, after = _affixes(project, view)
    parts = [_typed(name, dtype, _column(entity, name, keys)) for name, dtype in entity.keys.items()]
    if len({len(part) for part in parts}) > 1:
        raise EntityError(f"the join keys of '{entity.name}' are not equally many: {', '.join(entity.keys)}")
    typed = parts[0] if len(parts) == 1 else [b"|".join(each) for each in zip(*parts, strict=True)]
    # one join and one split are twice as fast as putting each key together; no typed id has a line break in it
    return (before + (after + b"\n" + before).join(typed) + after).split(b"\n") if typed else []


def misfits(view: View, keys: Columns) -> dict[int, str]:
    """Which rows have a value that cannot be a join key, and why: so that one of them need not fail its neighbours.

    Raises: EntityError for a column that cannot be one at all.
    """
    found: dict[int, str] = {}
    entity = _entity(view)
    for name, dtype in entity.keys.items():
        for row, value in enumerate(_column(entity, name, keys).tolist()):
            if why := _why_not(dtype, value):
                found.setdefault(row, f"the join key '{name}' {why}")
    return found


@lru_cache(maxsize=1024)
def _affixes(project: str, view: View) -> tuple[Entity, bytes, bytes]:
    """What stands before and after the typed id."""
    entity = _entity(view)
    return entity, b"f1:%b:{%b:" % (_escaped(project.encode()), entity.name.encode()), b"}:" + view.ref.encode()


def _entity(view: View) -> Entity:
    if view.entity is None:
        raise EntityError(f"'{view.ref}' is computed from the request: it has no rows, and no join keys")
    return view.entity


def _column(entity: Entity, name: str, keys: Columns) -> Array:
    column = keys.get(name)
    if column is None:
        raise EntityError(f"the join key '{name}' of '{entity.name}' is missing")
    if not isinstance(column, np.ndarray) or column.ndim != 1:
        shape = list(column.shape) if isinstance(column, np.ndarray) else type(column).__name__
        raise EntityError(f"the join key '{name}' of '{entity.name}' must be an array [N], not {shape}")
    return column


def _typed(name: str, dtype: str, column: Array) -> list[bytes]:
    if dtype == "int64":
        if column.dtype.kind == "i" or (column.dtype.kind == "u" and column.dtype.itemsize < 8):
            return list(map(b"i%d".__mod__, column.tolist()))
        values = column.tolist()
        _check(name, dtype, values)
        return [b"i%d" % int(value) for value in values]
    values = column.tolist()
    if set(map(type, values)) != {bytes} or max(map(len, values)) > MAX_VALUE_BYTES:
        _check(name, dtype, values)
    if _UNSAFE.search(b"".join(values)):
        values = [_escaped(value) for value in values]
    return list(map(b"s".__add__, values))


def _check(name: str, dtype: str, values: list[object]) -> None:
    for row, value in enumerate(values):
        if why := _why_not(dtype, value):
            raise EntityError(f"row {row}: the join key '{name}' {why}")


def _why_not(dtype: str, value: object) -> str:
    """What is wrong with a value, "" if nothing is."""
    if value is None:
        return "has no value"
    if dtype == "int64":
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            return f"must be an integer, not {type(value).__name__}"
        return "" if _INT64.min <= value <= _INT64.max else f"does not fit int64: {value}"
    if isinstance(value, str):
        return "must be bytes, not str: encode it as UTF-8"
    if not isinstance(value, bytes):
        return f"must be bytes, not {type(value).__name__}"
    return "" if len(value) <= MAX_VALUE_BYTES else f"has {len(value)} bytes; {MAX_VALUE_BYTES} at most"


def _escaped(value: bytes) -> bytes:
    return _UNSAFE.sub(lambda found: b"%%%02X" % found[0][0], value)
