"""Remove versions that nobody needs, each whole or not at all, and write down that it was done.

Floor 2. `keeping` decides; this file asks who holds what and has the hands. A version goes by one rename to a hidden name,
which no scan looks into; only then are its files removed. A process that is killed in between leaves the version or the hidden
folder, which the next prune of the model removes. Never removes what it cannot hold alone.
"""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from server.core.errors import RegistryError
from server.registry.aliases import read_aliases, read_history
from server.registry.durable import append_line, is_locked, locked, sync_folder
from server.registry.environment import current_user
from server.registry.keeping import Rules, Shelf, reasons_to_keep
from server.registry.lease import Hold, hold
from server.registry.manifest import MANIFEST_FILE
from server.registry.names import MEASURED_FOLDER, PRUNED_PREFIX, Pruned
from server.registry.source import FoundModel, FoundVersion, LocalDirectory

JOURNAL_FILE = "pruned.log"


@dataclass(frozen=True, slots=True)
class Decision:
    """One version, what its removal gives back, and why it stays: no reason means that it goes, or has gone."""

    model: str
    version: int
    reasons: tuple[str, ...]
    size_bytes: int


def prune(root: Path, name: str, rules: Rules, *, apply: bool, now: datetime | None = None) -> list[Decision]:
    """Decide on every version of a model, and with `apply` remove those that may go. Everything happens under its lock.

    A server that begins to load one of them meanwhile either has it leased, and it stays, or finds it gone.
    Raises: RegistryError where the model cannot be understood, and nothing was removed then; OSError from the disk.
    """
    folder = root / name
    hidden: list[tuple[Path, Hold]] = []
    try:
        with locked(folder):
            model = LocalDirectory(root, 0.0).scan().get(name)
            if model is None or model.folder != folder.resolve():
                raise RegistryError(f"the folder of model '{name}' is not in the repository itself")
            with _held(model) as holds:
                shelf = Shelf(
                    parents={number: _parent(found) for number, found in model.versions.items()},
                    # read again, and not the scan's: the scan takes what it cannot understand for no aliases
                    aliases=read_aliases(folder),
                    history=read_history(folder),
                    leased=model.versions.keys() - holds.keys(),
                    unreadable=[
                        number for number, found in model.versions.items() if _unreadable(found.folder, found.manifest)
                    ],
                )
                kept = reasons_to_keep(shelf, rules, now or datetime.now(UTC))
                for version in [version for version, why in kept.items() if apply and not why]:
                    hidden.append((_hide(model, version), holds.pop(version)))
    finally:
        # without the model's lock, because it takes time, and nobody finds these folders any more; after a failure as well
        for path, held in hidden:
            shutil.rmtree(path, ignore_errors=True)
            held.release()
    if apply:
        _remove_abandoned(folder)
    return [Decision(name, version, why, model.versions[version].size_bytes) for version, why in kept.items()]


def read_pruned(model_folder: Path) -> dict[int, Pruned]:
    """The last recorded removal of each version number, done or cut off. A line cut off by a crash is left out."""
    try:
        lines = (model_folder / JOURNAL_FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    removals = {}
    for line in lines:
        try:
            removal = Pruned.model_validate_json(line, strict=True)
        except ValidationError:
            continue
        removals[removal.version] = removal
    return removals


@contextmanager
def _held(model: FoundModel) -> Iterator[dict[int, Hold]]:
    """Every version that nobody leases, held until the end unless taken out: none of them can be leased meanwhile."""
    holds: dict[int, Hold] = {}
    try:
        for number, found in model.versions.items():
            # a linked folder is another's: renaming the link would leave the files, and removing them would hit the other
            held = None if found.folder.is_symlink() else hold(found.folder)
            if held is not None:
                holds[number] = held
        yield holds
    finally:
        for held in holds.values():
            held.release()


def _parent(found: FoundVersion) -> int | None:
    return None if found.manifest is None else found.manifest.parent


def _unreadable(folder: Path, manifest: object) -> bool:
    return manifest is None and (folder / MANIFEST_FILE).exists()


def _hide(model: FoundModel, version: int) -> Path:
    found = model.versions[version]
    removal = Pruned(at=datetime.now(UTC), who=current_user(), version=version, parent=_parent(found))
    # the line first, as with aliases: a removal that was announced and not made shows by the version being there
    append_line(model.folder / JOURNAL_FILE, removal.model_dump_json())
    path = model.folder / f"{PRUNED_PREFIX}{version}-{secrets.token_hex(8)}"
    found.folder.rename(path)
    sync_folder(model.folder)
    # what was measured of it says nothing of another version: it goes with its files
    with suppress(OSError):
        (model.folder / MEASURED_FOLDER / str(version)).rename(path / MEASURED_FOLDER)
    return path


def _remove_abandoned(folder: Path) -> None:
    """What a killed prune had hidden and not removed yet; what a living one is at work on is its own."""
    for path in folder.glob(f"{PRUNED_PREFIX}*"):
        if not is_locked(path):
            shutil.rmtree(path, ignore_errors=True)
