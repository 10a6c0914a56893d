"""What a view is, as one document, and as the hash of it: the fingerprint that rows carry and bundles record.

In it: everything that decides a value. Names, types and order of keys, inputs and features, windows, defaults to the bit,
policies, the closure of the function, the state of a model view. Not in it: units, which are for people; columns of the event
log that the view does not use; and `fit`, because what it has learnt is the state.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from feature_client.aggregation import Aggregation
from feature_client.closure import closure_of
from feature_client.constants import array_text, exact_text, shortened
from feature_client.errors import DefinitionError
from feature_client.schema import DTYPES, Columns, Feature
from feature_client.sources import Sources
from feature_client.view import View

FORMAT = 1
"""Of the document. Another one gives every view another fingerprint."""


@dataclass(frozen=True)
class Description:
    """A view as a document of JSON. `texts`: the source of its functions, for people; they are not part of what is hashed."""

    document: Mapping[str, Any]
    texts: Mapping[str, str]

    @property
    def fingerprint(self) -> bytes:
        """SHA-256: 32 bytes, the same for the same document everywhere."""
        return hashlib.sha256(json.dumps(self.document, sort_keys=True, separators=(",", ":")).encode()).digest()

    def with_state(self, state: Columns) -> "Description":
        """The same view with the state of a model bundle. Raises: DefinitionError for arrays that have no exact form."""
        if self.document["kind"] != "model":
            raise DefinitionError(f"'{self.document['view']}' is no model view: it has no state")
        described = {}
        for name, array in sorted(state.items()):
            try:
                dtype, shape, digest = array_text(array)
            except DefinitionError as error:
                raise DefinitionError(f"the state '{name}' of '{self.document['view']}' is {error}") from None
            described[name] = {"dtype": dtype, "shape": shape, "sha256": digest}
        return Description({**self.document, "state": described}, self.texts)


def fingerprint(view: View, state: Columns | None = None) -> bytes:
    """The 32 bytes by which a view is known: equal for equal definitions in any process, file and order.

    `state`: of a model view. Raises: DefinitionError naming what in the closure cannot be known, or for a model view without.
    """
    if view.kind == "model" and state is None:
        raise DefinitionError(f"the model view '{view.ref}' has no fingerprint without its state")
    description = describe(view)
    return (description if state is None else description.with_state(state)).fingerprint


def stamp_of(fingerprint: bytes) -> int:
    """What rows carry of a fingerprint: its first 8 bytes, as a little-endian number.

    >>> stamp_of(bytes([1, 2]) + bytes(30))
    513
    """
    return int.from_bytes(fingerprint[:8], "little")


def describe(view: View, sources: Sources | None = None) -> Description:
    """A view without state. `sources`: shared between views, so that each file is read once. Raises: DefinitionError."""
    closure = closure_of(view.function, sources or Sources())
    document = {
        "format": FORMAT,
        "view": view.ref,
        "kind": view.kind,
        "entity": _entity(view),
        "source": _source(view),
        "inputs": [[name, _input(given)] for name, given in view.inputs.items()],
        "features": [[feature.name, _feature(feature)] for feature in view.features],
        "policy": {"max_age_us": view.max_age_us, "on_missing": view.on_missing, "on_stale": view.on_stale},
        "function": getattr(view.function, "__qualname__", ""),
        "closure": closure.parts,
        "state": None,
    }
    return Description(document, closure.texts)


def _entity(view: View) -> dict[str, Any] | None:
    return None if view.entity is None else {"name": view.entity.name, "keys": [list(key) for key in view.entity.keys.items()]}


def _source(view: View) -> dict[str, Any] | None:
    source = view.source
    if source is None:
        return None
    used = {given.column for given in view.inputs.values() if isinstance(given, Aggregation)}
    used |= {source.event_time, source.created_time, source.event_id, *(view.entity.keys if view.entity else ())}
    return {
        "name": source.name,
        "event_time": source.event_time,
        "created_time": source.created_time,
        "event_id": source.event_id,
        "columns": {name: source.columns[name] for name in sorted(used) if name in source.columns},
    }


def _input(given: Aggregation | str) -> dict[str, Any]:
    if isinstance(given, str):
        return {"dtype": given}
    return {
        "aggregation": given.kind,
        "column": given.column,
        "window_us": given.window_us,
        "resolution": float(given.resolution).hex(),
    }


def _feature(feature: Feature) -> dict[str, Any]:
    with np.errstate(all="ignore"):  # a default beyond a small type is its infinity, as it is when it stands in
        default = feature.default if feature.dtype == "bytes" else DTYPES[feature.dtype].type(feature.default)
    return {
        "dtype": feature.dtype,
        "shape": list(feature.shape),
        "default": shortened(exact_text(default, repr)),
        "null": feature.null,
        "max_age_us": feature.max_age_us,
    }
