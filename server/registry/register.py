"""Write one version into the repository, whole or not at all.

Floor 2. Files are copied and digested into a hidden folder beside the versions, forced to disk, and renamed to their
version number: the rename is the only moment at which anything becomes visible. Never overwrites a version, never
trains, never loads.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from server.core.errors import AlreadyExists, InvalidRequest, NotFound, RegistryError
from server.core.versions import VersionKey
from server.registry.aliases import ALIASES_FILE, move_alias, read_aliases
from server.registry.durable import copy_new, is_locked, locked, sync_folder, temporary_name, write_atomically, write_new
from server.registry.golden import GOLDEN_FILE, load_golden
from server.registry.manifest import (
    MANIFEST_FILE,
    FileDigest,
    GoldenRef,
    Manifest,
    ManifestFields,
    faults,
    manifest_bytes,
    path_fault,
)
from server.registry.names import INCOMING_PREFIX, check_alias_name, check_model_name, version_number
from server.registry.prune import read_pruned
from server.registry.source import SETTINGS_FILE, parse_settings


@dataclass(frozen=True, slots=True)
class GoldenSource:
    """A file written by `save_golden`, and how far an answer may be from it."""

    path: Path
    rtol: float = 1e-5
    atol: float = 1e-6


def register(
    root: Path,
    name: str,
    files: Mapping[str, Path],
    fields: ManifestFields,
    *,
    version: int | None = None,
    golden: GoldenSource | None = None,
    aliases: Sequence[str] = (),
    settings_file: Path | None = None,
    derived: Sequence[Literal["baseline.json"]] = (),
) -> VersionKey:
    """Register a version from files that stay where they are, then move `aliases` to it.

    `files` maps paths inside the version to files on disk. Without `version` the next free number is taken. A process that
    is killed at any instant leaves either no version or a whole one (perhaps without its aliases yet); what it had copied
    is removed by the next registration of the model. `settings_file` becomes the model's model.toml, for all versions.
    `derived`: files that no recipe made, see `Manifest`.

    Raises: AlreadyExists for a version that is there; NotFound for a parent that is not; InvalidRequest and RegistryError
    for names, settings or golden examples that are refused, before anything is written; OSError from the disk.
    """
    check_model_name(name)
    for alias in aliases:
        check_alias_name(alias)
    if version is not None and version_number(str(version)) is None:
        raise InvalidRequest(f"version {version} must be an integer > 0 with at most 18 digits")
    sources = _sources(files, golden)
    settings = None if settings_file is None else settings_file.read_bytes()
    if settings is not None:
        parse_settings(settings)
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    if not folder.resolve().is_relative_to(root.resolve()):
        raise RegistryError(f"the folder of model '{name}' is a link that leads out of the repository")
    sync_folder(root)
    _check_free(folder, version)
    with _incoming(folder) as incoming:
        digests = _copy(sources, incoming)
        # the lock is held for the naming only: copies of large files run side by side
        with locked(folder):
            number = _next_version(folder) if version is None else version
            _check_free(folder, number)
            manifest = _manifest(VersionKey(name, number), fields, digests, golden, derived)
            if fields.parent is not None and not (folder / str(fields.parent)).is_dir():
                raise NotFound(f"parent version {fields.parent} of {name}:{number} is not in the repository")
            if aliases:
                read_aliases(folder)  # not after the naming: it would fail then, with the version in place
            write_new(incoming / MANIFEST_FILE, manifest_bytes(manifest))
            sync_folder(incoming)
            # settings first: a version must not be seen under the settings of its predecessor
            if settings is not None:
                _write_settings(folder / SETTINGS_FILE, settings)
            incoming.rename(folder / str(number))
            sync_folder(folder)
            for alias in aliases:
                move_alias(folder, alias, number)
    return VersionKey(name, number)


def _sources(files: Mapping[str, Path], golden: GoldenSource | None) -> dict[str, Path]:
    if not files:
        raise InvalidRequest("a version needs at least one file")
    sources = dict(files)
    if golden is not None:
        if GOLDEN_FILE in sources:
            raise InvalidRequest(f"{GOLDEN_FILE} is both a file and the golden examples")
        load_golden(golden.path)
        sources[GOLDEN_FILE] = golden.path
    for path, source in sources.items():
        fault = path_fault(path)
        if fault:
            raise InvalidRequest(f"file {path!r} {fault}")
        if not source.is_file():
            raise InvalidRequest(f"{source} is not a file")
    return sources


@contextmanager
def _incoming(folder: Path) -> Iterator[Path]:
    """A hidden folder that belongs to this process while it lives, and goes away unless it was renamed."""
    path = folder / f"{INCOMING_PREFIX}{secrets.token_hex(8)}"
    # made and claimed under the model's lock, so that nobody can find it unclaimed and take it for abandoned
    with locked(folder):
        _remove_abandoned(folder)
        path.mkdir()
        owner = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(owner, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(owner)


def _remove_abandoned(folder: Path) -> None:
    """What killed processes left. The caller holds the model's lock, as everyone does who replaces a document."""
    for path in folder.glob(f"{INCOMING_PREFIX}*"):
        if not is_locked(path):
            shutil.rmtree(path, ignore_errors=True)
    for document in (ALIASES_FILE, SETTINGS_FILE):
        for path in folder.glob(temporary_name(document, "*")):
            path.unlink()


def _copy(sources: Mapping[str, Path], incoming: Path) -> dict[str, FileDigest]:
    digests = {}
    for path in sorted(sources):
        target = incoming / path
        target.parent.mkdir(parents=True, exist_ok=True)
        digests[path] = copy_new(sources[path], target)
    for inner in incoming.rglob("*"):
        if inner.is_dir():
            sync_folder(inner)
    return digests


def _manifest(
    key: VersionKey,
    fields: ManifestFields,
    digests: dict[str, FileDigest],
    golden: GoldenSource | None,
    derived: Sequence[Literal["baseline.json"]],
) -> Manifest:
    try:
        reference = None if golden is None else GoldenRef(file=GOLDEN_FILE, rtol=golden.rtol, atol=golden.atol)
        return Manifest(
            model=key.model,
            version=key.version,
            created_at=datetime.now(UTC),
            files=digests,
            golden=reference,
            derived=tuple(derived),
            **{name: getattr(fields, name) for name in ManifestFields.model_fields},
        )
    except ValidationError as error:
        raise InvalidRequest(f"{key}: {faults(error)}") from None


def _check_free(folder: Path, version: int | None) -> None:
    # anything of that name counts, also a link or a file: rename would silently replace an empty folder
    if version is not None and os.path.lexists(folder / str(version)):
        raise AlreadyExists(f"{folder.name}:{version} exists already; a version is never overwritten")
    if version is not None and version in read_pruned(folder):
        raise AlreadyExists(f"{folder.name}:{version} was there and has been pruned; a number is never used again")


def _next_version(folder: Path) -> int:
    # versions that only an alias still names count: champion must not move because a number was used again
    taken = [number for child in folder.iterdir() if (number := version_number(child.name)) is not None]
    return max([*taken, *read_aliases(folder).values(), *read_pruned(folder)], default=0) + 1


def _write_settings(path: Path, data: bytes) -> None:
    # unchanged settings keep their file: a new one would make every version of the model load again
    if not path.is_file() or path.read_bytes() != data:
        write_atomically(path, data)
