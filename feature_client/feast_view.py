"""Views whose rows Feast has written: what is asked for, and the names under which Feast keeps it. **Pure.**

Such a view is read like any other stored view, and can stand in definitions and in a `FeatureSet` beside them. Its function
gives no rows: what Feast computed cannot be computed again here, so neither training sets nor audits can be made of it.
Source: `feast.infra.key_encoding_utils` and `feast.infra.online_stores.helpers` of Feast 0.67.0; serialization 3 of keys.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from feature_client.errors import DefinitionError, EntityError
from feature_client.murmur import murmur3_32
from feature_client.schema import Array, Columns, Entity, EventLog, Feature
from feature_client.view import Policy, View

FEAST_DTYPES = ("float32", "float64", "int32", "int64", "bool", "bytes")
_KEY_TYPES = {"bytes": 1, "string": 2, "int32": 3, "int64": 4}
_CANONICAL = {"bytes": "bytes", "string": "bytes", "int32": "int64", "int64": "int64"}
_LENGTH = struct.Struct("<I")
_MAX_KEY_BYTES = 512


@dataclass(frozen=True, eq=False)
class FeastView(View):
    """A view of Feast's. `feast_name`: as Feast calls it; `key_types`: Feast's type of each join key.

    `fields`: the fields of the hash that hold the features, in their order, then the one that holds the event time.
    """

    feast_name: str = ""
    key_types: Mapping[str, str] = field(default_factory=dict)
    fields: tuple[bytes, ...] = ()


def feast_view(
    name: str,
    *,
    entity: str,
    keys: Mapping[str, str],
    features: Sequence[Feature],
    feast_name: str = "",
    feast_features: Mapping[str, str] | None = None,
    version: int = 1,
    max_age_us: int = 0,
    on_missing: Policy = "default",
    on_stale: Policy = "default",
) -> FeastView:
    """A view of rows that Feast writes.

    `keys`: Feast's join keys, each "int64", "int32", "string" or "bytes": 1 as INT32 and 1 as INT64 are two entities to Feast.
    `features`: of the types that Feast's values have; a list of k values is a feature of shape (k,); a UNIX timestamp is an
    int64 of seconds. `feast_features`: Feast's name of a feature where ours is another. `max_age_us`: judged by the time that
    Feast keeps with a row; Feast itself does not judge it. Raises: DefinitionError.
    """
    for key, kind in keys.items():
        if kind not in _KEY_TYPES:
            raise DefinitionError(f"the join key '{key}' of '{name}' is of type '{kind}'; one of {', '.join(_KEY_TYPES)}")
    for feature in features:
        if feature.dtype not in FEAST_DTYPES or len(feature.shape) > 1:
            raise DefinitionError(f"'{feature.name}' of '{name}': Feast has {', '.join(FEAST_DTYPES)}, and lists of them")
    known_as = feast_name or name
    names = [dict(feast_features or {}).get(feature.name, feature.name) for feature in features]
    fields = tuple(murmur3_32(f"{known_as}:{each}".encode()).to_bytes(4, "little") for each in names)
    if len(set(fields)) != len(fields):
        raise DefinitionError(f"Feast keeps two features of '{name}' under one name: a collision of 32 bits")
    kept = {
        each.name: ("O" if each.dtype == "bytes" else each.dtype, int.from_bytes(field_name, "little"), each.shape)
        for each, field_name in zip(features, fields, strict=True)
    }
    canonical = {key: _CANONICAL[kind] for key, kind in keys.items()}
    return FeastView(
        name=name,
        version=version,
        kind="stored",
        inputs={},
        features=tuple(features),
        function=_written_by_feast(kept, dict(keys), known_as),
        entity=Entity(entity, canonical),
        source=EventLog(f"feast_{name}", {**canonical, "event_us": "int64"}),
        max_age_us=max_age_us,
        on_missing=on_missing,
        on_stale=on_stale,
        feast_name=known_as,
        key_types=dict(keys),
        fields=(*fields, f"_ts:{known_as}".encode()),
    )


def _written_by_feast(
    kept: Mapping[str, tuple[str, int, tuple[int, ...]]], key_types: Mapping[str, str], feast_name: str
) -> Callable[[], Mapping[str, Array]]:
    """A function of no input that gives no rows: what it closes over is what the view's fingerprint has to tell apart."""

    told = (dict(kept), dict(key_types), feast_name)

    def none() -> Mapping[str, Array]:
        features, _, _ = told
        return {name: np.empty((0, *shape), dtype) for name, (dtype, _, shape) in features.items()}

    return none


def feast_keys(project: str, view: FeastView, keys: Columns) -> list[bytes]:
    """The key of each entity's hash. Shapes: columns `[N]`: integers, or bytes.

    Raises: EntityError for a column that is missing, of another type or length, or a value that cannot be a key.
    """
    # Feast sorts its join keys by name
    names = sorted(view.key_types)
    head = _LENGTH.pack(len(names)) + b"".join(
        _LENGTH.pack(_KEY_TYPES["string"]) + _LENGTH.pack(len(name)) + name.encode() for name in names
    )
    parts = [_values(name, view.key_types[name], keys) for name in names]
    if len({len(each) for each in parts}) != 1:
        raise EntityError(f"the join keys of '{view.ref}' are not equally many")
    tail = project.encode()
    made = [b"".join((head, *each, tail)) for each in zip(*parts, strict=True)]
    if any(len(key) > _MAX_KEY_BYTES for key in made):
        raise EntityError(f"a key of '{view.ref}' is longer than {_MAX_KEY_BYTES} bytes")
    return made


def _values(name: str, kind: str, keys: Columns) -> list[bytes]:
    column = keys.get(name)
    if column is None or column.ndim != 1:
        raise EntityError(f"the join key '{name}' is missing, or not a column [N]")
    if kind in ("int32", "int64"):
        width = 4 if kind == "int32" else 8
        limits = np.iinfo(kind)
        if column.dtype.kind not in "iu" or (column.size and (column.min() < limits.min or column.max() > limits.max)):
            raise EntityError(f"the join key '{name}' must be integers that {kind} can hold, not {column.dtype}")
        head = _LENGTH.pack(_KEY_TYPES[kind]) + _LENGTH.pack(width)
        return [head + value.to_bytes(width, "little", signed=True) for value in column.tolist()]
    values = column.tolist()
    if not all(isinstance(value, bytes) for value in values):
        raise EntityError(f"the join key '{name}' must be bytes (text as UTF-8)")
    head = _LENGTH.pack(_KEY_TYPES[kind])
    return [head + _LENGTH.pack(len(value)) + value for value in values]
