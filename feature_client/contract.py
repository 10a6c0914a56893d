"""What a model version was made with, kept beside it and proven where it is to serve: three gates.

*Load gate*: `Contract.check` compares fingerprints and computes the golden rows again; a version that differs does not load.
*Write gate*: `claim_view` lets one definition write a view's rows. *Read gate*: every row carries its view's stamp.
"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from feature_client.contract_files import DOCUMENT_FILE, Shelf, read_files, write_files
from feature_client.definitions import Definitions, definitions_of
from feature_client.difference import differences
from feature_client.errors import ContractError, DefinitionError
from feature_client.feature_set import FeatureSet
from feature_client.fingerprint import Description
from feature_client.golden_rows import golden_inputs, golden_outputs, matches, shown, ulps_apart
from feature_client.schema import Array, Feature
from feature_client.store import Store
from feature_client.view import View

FORMAT = 1
_MOST_ROWS = 4096
"""Golden rows are computed one by one as well: a file from elsewhere must not keep a load busy for hours."""


@dataclass(frozen=True)
class Recorded:
    """One view as it was when the version was made. Shapes: golden columns `[rows, *shape]`."""

    description: Description
    state: dict[str, Array] | None
    inputs: dict[str, Array]
    outputs: dict[str, Array]

    @property
    def names(self) -> tuple[str, ...]:
        """Its features, in order."""
        return tuple(name for name, _ in self.description.document["features"])


@dataclass(frozen=True)
class Contract:
    """The features of a version: views by reference, in the order they are computed in.

    `feature_names`: all features, in order. `reads`: those that the model itself takes. `ulps`: how far floats may be from the
    golden ones, in values of their type. `environment`: where it was made; for people, compared by nobody.
    """

    recorded: Mapping[str, Recorded]
    feature_names: tuple[str, ...]
    reads: tuple[str, ...]
    ulps: int
    environment: Mapping[str, str]

    @property
    def views(self) -> tuple[str, ...]:
        """References, in order."""
        return tuple(self.recorded)

    @property
    def states(self) -> dict[str, dict[str, Array]]:
        """What `fit` of each model view had learnt."""
        return {ref: each.state for ref, each in self.recorded.items() if each.state is not None}

    @property
    def fingerprints(self) -> dict[str, bytes]:
        """Of every view, model views with their state."""
        return {ref: each.description.fingerprint for ref, each in self.recorded.items()}

    def used(self) -> dict[str, tuple[str, ...]]:
        """For each view the features that the model takes, or that others are computed from which it takes."""
        owner = {name: ref for ref, each in self.recorded.items() for name in each.names}
        used: set[str] = set()
        waiting = [name for name in self.reads if name in owner]
        while waiting:
            name = waiting.pop()
            if name not in used:
                used.add(name)
                given = self.recorded[owner[name]].description.document["inputs"]
                waiting += [each for each, how in given if "dtype" in how and each in owner]
        return {ref: tuple(name for name in each.names if name in used) for ref, each in self.recorded.items()}

    def check(self, definitions: Definitions, ulps: int = 0) -> None:
        """Return only if the installed definitions are those of this version, and give its golden values here.

        `ulps`: allowed beside what the version itself allows. Raises: ContractError with a line for each difference.
        """
        lines: list[str] = []
        drifted = False
        for ref, recorded in self.recorded.items():
            if ref not in definitions.views:
                lines.append(f"{ref}: not installed; there is: {', '.join(definitions.views) or 'nothing'}")
                continue
            lines += [f"{ref}: {line}" for line in _described(recorded, definitions, ref)]
            golden = list(_golden(recorded, definitions.views[ref], max(ulps, self.ulps)))
            drifted |= bool(golden)
            lines += [f"{ref}: {line}" for line in golden]
        if drifted and self.environment != environment():
            lines.append(f"golden values were recorded with {_words(self.environment)}; here: {_words(environment())}")
        if lines:
            raise ContractError("the definitions installed here are not what this version was made with:", lines)


def write_contract(
    folder: Path, feature_set: FeatureSet, *, reads: Sequence[str] | None = None, ulps: int = 0, seed: int = 0
) -> None:
    """Write `features.json` and `features.npz` into a version's folder, each whole or not at all; equal sets, equal bytes.

    `reads`: the features that are inputs of the model; all of them unless stated. `ulps`: 0 demands the same bits of every
    machine that serves. Raises: DefinitionError for views that cannot be proven; OSError.
    """
    definitions = definitions_of(feature_set.views)
    unknown = set(reads or ()) - feature_set.features.keys()
    if unknown:
        raise DefinitionError(f"the model cannot read {', '.join(sorted(unknown))}: no view has it")
    shelf = Shelf()
    views = [_entry(view, feature_set, definitions, shelf, seed) for view in feature_set.views]
    names = [name for view in feature_set.views for name in view.names]
    document = {
        "format": FORMAT,
        "feature_names": names,
        "reads": names if reads is None else list(reads),
        "ulps": ulps,
        "environment": environment(),
        "views": views,
    }
    write_files(folder, document, shelf.arrays)


def _entry(view: View, feature_set: FeatureSet, definitions: Definitions, shelf: Shelf, seed: int) -> dict[str, Any]:
    state = feature_set.states.get(view.ref) if view.kind == "model" else None
    if view.kind == "model" and state is None:
        raise DefinitionError(f"the model view '{view.ref}' has no state to write")
    description = definitions.description(view.ref, state)
    inputs = golden_inputs(view, seed=seed, state=state)
    return {
        "view": view.ref,
        "fingerprint": description.fingerprint.hex(),
        "description": description.document,
        "texts": description.texts,
        "state": None if state is None else shelf.put(state),
        "golden": {"inputs": shelf.put(inputs), "outputs": shelf.put(golden_outputs(view, inputs, state))},
    }


def read_contract(folder: Path) -> Contract | None:
    """The contract of a version; None where it was made without features.

    Never executes or unpickles anything. Raises: ContractError for files that are broken, too large, or of another format.
    """
    files = read_files(folder)
    if files is None:
        return None
    document, shelf = files
    if document.get("format") != FORMAT:
        raise ContractError(f"{DOCUMENT_FILE} is of format {document.get('format')!r}; this program reads {FORMAT}")
    try:
        recorded = {str(entry["view"]): _recorded(entry, shelf) for entry in document["views"]}
        contract = Contract(
            recorded,
            tuple(map(str, document["feature_names"])),
            tuple(map(str, document["reads"])),
            int(document["ulps"]),
            {str(key): str(value) for key, value in document["environment"].items()},
        )
        names = tuple(name for each in recorded.values() for name in each.names)
    except ContractError:
        raise
    # what a document makes that is JSON but not this one
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise ContractError(f"{DOCUMENT_FILE}: no description of features: {type(error).__name__}: {error}") from None
    if names != contract.feature_names or contract.ulps < 0:
        raise ContractError(f"{DOCUMENT_FILE} contradicts itself: its views have other features than it lists")
    return contract


def _recorded(entry: Mapping[str, Any], shelf: Shelf) -> Recorded:
    description = Description(entry["description"], entry["texts"])
    if description.fingerprint.hex() != entry["fingerprint"] or description.document["view"] != entry["view"]:
        raise ContractError(f"{DOCUMENT_FILE} contradicts itself: '{entry['view']}' is not what its fingerprint says")
    state = None if entry["state"] is None else shelf.take(entry["state"])
    inputs, outputs = shelf.take(entry["golden"]["inputs"]), shelf.take(entry["golden"]["outputs"])
    if len({column.shape for column in inputs.values()}) > 1 or any(column.ndim != 1 for column in inputs.values()):
        raise ContractError(f"{DOCUMENT_FILE}: the golden inputs of '{entry['view']}' are no columns of equal length")
    recorded = Recorded(description, state, inputs, outputs)
    _check_whole(str(entry["view"]), recorded)
    return recorded


def _check_whole(ref: str, recorded: Recorded) -> None:
    """What is not there could not be compared. Raises: ContractError."""
    document = recorded.description.document
    rows = {len(column) for column in (*recorded.inputs.values(), *recorded.outputs.values())}
    names = {str(name): dict(how) for name, how in document["inputs"]}
    if recorded.inputs.keys() != names.keys() or recorded.outputs.keys() != set(recorded.names) or len(rows) > 1:
        raise ContractError(f"{DOCUMENT_FILE}: the golden rows of '{ref}' are not of its inputs and features")
    if max(rows, default=0) > _MOST_ROWS:
        raise ContractError(f"{DOCUMENT_FILE}: '{ref}' has {max(rows)} golden rows; {_MOST_ROWS} at most are computed")
    if (document["kind"] == "model") != (recorded.state is not None):
        raise ContractError(
            f"{DOCUMENT_FILE}: '{ref}' is a {document['kind']} view {'with' if recorded.state else 'without'} state"
        )


def claim_view(store: Store, project: str, view_ref: str, fingerprint: bytes) -> None:
    """Return only if this definition is the one that writes a view's rows: the first to come stays it.

    Raises: ContractError where another one writes them; StoreError.
    """
    mine = fingerprint.hex()
    first = store.claim_text(f"fp:{project}:{view_ref}", mine)
    if first != mine:
        raise ContractError(
            f"the rows of '{view_ref}' in the project '{project}' are written by another definition (fingerprint {first[:16]}) "
            f"than this one ({mine[:16]}): give what has changed another version"
        )


def environment() -> dict[str, str]:
    """What may change the bits of a result without any change of a definition."""
    config: Any = np.show_config(mode="dicts")
    found = config.get("SIMD Extensions", {})
    return {
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_features": " ".join([*found.get("baseline", []), *found.get("found", [])]),
    }


def _described(recorded: Recorded, definitions: Definitions, ref: str) -> list[str]:
    try:
        installed = definitions.description(ref, recorded.state)
        found = differences(recorded.description, installed)
    except DefinitionError as error:
        return [str(error)]
    if not found and installed.fingerprint != recorded.description.fingerprint:
        return ["the fingerprint differs"]
    return found


def _golden(recorded: Recorded, view: View, ulps: int) -> Iterator[str]:
    """What the golden rows give here, where they can be asked at all: other inputs or features are a difference already."""
    if set(recorded.inputs) != set(view.inputs) or (view.kind == "model") != (recorded.state is not None):
        return
    try:
        made = golden_outputs(view, recorded.inputs, recorded.state)
    except DefinitionError as error:
        yield f"golden rows: {error}"
        return
    rows = len(next(iter(recorded.inputs.values()), ()))
    for feature in view.features:
        column = recorded.outputs.get(feature.name)
        if column is not None and matches(feature, column, rows):
            yield from _apart(feature, column, made[feature.name], ulps)


def _apart(feature: Feature, recorded: Array, got: Array, ulps: int) -> Iterator[str]:
    apart = ulps_apart(recorded, got)
    allowed = ulps if recorded.dtype.kind == "f" else 0
    differ = [row for row, distance in enumerate(apart) if distance is None or distance > allowed]
    if not differ:
        return
    worst = max(differ, key=lambda row: float("inf") if apart[row] is None else float(apart[row] or 0))
    distance = "no number of ULPs" if apart[worst] is None else f"{apart[worst]} ULPs"
    yield (
        f"golden values of '{feature.name}': {len(differ)} of {len(apart)} rows differ, most in row {worst}: recorded "
        f"{shown(recorded[worst])}, here {shown(got[worst])} ({distance})"
    )


def _words(found: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in found.items())
