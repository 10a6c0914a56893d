"""Which models and versions are in the repository right now, and whether one of them is what it claims to be.

Floor 2: the lifecycle asks `scan` what should exist and `verify` before it loads. Never loads a model, never writes, and
never hashes during a scan: an unchanged repository costs a stat per file.
"""

import hashlib
import os
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from server.core.errors import InvalidRequest, RegistryError
from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.registry.aliases import ALIASES_FILE, parse_aliases
from server.registry.durable import digest_file
from server.registry.listing import Listing, list_files
from server.registry.manifest import MANIFEST_FILE, FileDigest, Manifest, faults, parse_manifest
from server.registry.names import check_model_name, version_number
from server.registry.reread import Reread

SETTINGS_FILE = "model.toml"


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """One version folder as a scan saw it.

    `stamp` differs whenever any file of the version or the model's settings differs in size, time or inode. `problem`
    says why the version must not be loaded. `settled` is False while a version without manifest may still be being
    copied; a manifest names every file and size, so there a half-copy is a problem and not a matter of time.

    Units: `size_bytes` without hidden files; `newest_s` seconds since the epoch.
    """

    key: VersionKey
    folder: Path
    stamp: str
    problem: str | None
    settled: bool
    manifest: Manifest | None
    size_bytes: int = 0
    newest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FoundModel:
    """One model folder as a scan saw it.

    `settings` are the defaults where there is no model.toml, and None where it is refused: then nothing of the model can be
    loaded. `problem` says what is wrong with the model's own files (name, settings, aliases).
    """

    name: str
    folder: Path
    settings: ModelSettings | None
    versions: dict[int, FoundVersion] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    problem: str | None = None


def parse_settings(data: bytes) -> ModelSettings:
    """Read a model.toml. Raises: RegistryError naming every key that is wrong or unknown."""
    try:
        return ModelSettings.model_validate(tomllib.loads(data.decode()))
    except ValidationError as error:
        raise RegistryError(f"{SETTINGS_FILE}: {faults(error)}") from None
    # not tomllib's own error alone: text that is no UTF-8, a number of thousands of digits, brackets without end
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{SETTINGS_FILE}: {error}") from None


class LocalDirectory:
    """A repository in a local directory: `<name>/<version>/…`.

    Ownership: `scan` keeps what it has read and belongs to one thread; `verify` and `digests` may run in any.
    Units: `settle_s` seconds; `now_s` seconds since the epoch, the clock that file times are on.
    """

    def __init__(self, root: Path, settle_s: float, now_s: Callable[[], float] = time.time) -> None:
        self.root = root
        self._settle_s = settle_s
        self._now_s = now_s
        self._settings = Reread(parse_settings)
        self._aliases = Reread(parse_aliases)
        self._manifests = Reread(parse_manifest)
        self._used: list[Path] = []

    def scan(self) -> dict[str, FoundModel]:
        """Every model of the repository by name; one that cannot be read is there with its problem.

        A folder counts as a model when it holds a version, a model.toml or aliases. Hidden folders, folders whose name is
        not an integer > 0, and links that lead out of the repository are not looked into.

        Raises: RegistryError when the repository itself cannot be read, which must not be taken for an empty one.
        """
        self._used = []
        models: dict[str, FoundModel] = {}
        try:
            root = self.root.resolve(strict=True)
            folders = sorted(root.iterdir())
        except OSError as error:
            raise RegistryError(f"repository '{self.root}' cannot be read: {error.strerror}") from None
        for folder in folders:
            if folder.name.startswith(".") or not _is_inner_folder(folder, root):
                continue
            try:
                model = self._model(folder, root)
            except FileNotFoundError:  # removed while we looked
                continue
            except OSError as error:
                model = FoundModel(_printable(folder.name), folder, None, problem=f"cannot be read: {error.strerror}")
            if model is not None:
                models[model.name] = model
        for documents in (self._settings, self._aliases, self._manifests):
            documents.forget_except(self._used)
        return models

    def verify(self, found: FoundVersion) -> None:
        """Return only if the version's files are exactly those of its manifest, byte for byte.

        A file that the manifest does not list is refused too: a backend opens files by name (external weights, a second
        model file), so an added one could change what is executed. Hidden files are left out of this, as everywhere.
        A version without manifest has promised nothing: only its scan's own problem can refuse it.

        Raises: RegistryError naming the first file that is missing, surplus, truncated or different.
        """
        if found.problem is not None:
            raise RegistryError(f"{found.key}: {found.problem}")
        if found.manifest is None:
            return
        try:
            listing = list_files(found.folder, self.root.resolve())
            problem = _difference(found.manifest, listing)
            for path, promised in found.manifest.files.items() if problem is None else ():
                actual = digest_file(found.folder / path)
                if actual != promised:
                    problem = f"{path} has sha256 {actual.sha256}, its manifest says {promised.sha256}"
                    break
        except OSError as error:
            problem = f"{error.filename} cannot be read: {error.strerror}"
        except RegistryError as error:
            problem = str(error)
        if problem is not None:
            raise RegistryError(f"{found.key}: {_printable(problem)}")

    def digests(self, found: FoundVersion) -> dict[str, FileDigest]:
        """The digest of every file as it is now: all that can be said of a version without manifest.

        Raises: RegistryError when a file cannot be read.
        """
        try:
            files = list_files(found.folder, self.root.resolve()).files
            return {path: digest_file(found.folder / path) for path in sorted(files) if path != MANIFEST_FILE}
        except OSError as error:
            raise RegistryError(f"{found.key}: {_printable(str(error.filename))} cannot be read: {error.strerror}") from None

    def _model(self, folder: Path, root: Path) -> FoundModel | None:
        numbers = sorted(number for child in folder.iterdir() if (number := version_number(child.name)) is not None)
        numbers = [number for number in numbers if _is_inner_folder(folder / str(number), root)]
        documents = [folder / SETTINGS_FILE, folder / ALIASES_FILE]
        if not numbers and not any(document.exists() for document in documents):
            return None
        try:
            check_model_name(folder.name)
        except InvalidRequest as error:
            # nothing of it is listed: a name that nobody can ask for must not take memory
            return FoundModel(_printable(folder.name), folder, None, problem=str(error))
        self._used += documents
        settings: ModelSettings | None = None
        aliases: dict[str, int] = {}
        problems: list[str] = []
        try:
            settings = self._settings.get(folder / SETTINGS_FILE) or ModelSettings()
        except RegistryError as error:
            problems.append(str(error))
        try:
            aliases = dict(self._aliases.get(folder / ALIASES_FILE) or {})
        except RegistryError as error:
            problems.append(str(error))
        versions = {}
        for number in numbers:
            version = self._version(VersionKey(folder.name, number), folder / str(number), root)
            if version is not None:
                versions[number] = version
        return FoundModel(folder.name, folder, settings, versions, aliases, "; ".join(problems) or None)

    def _version(self, key: VersionKey, folder: Path, root: Path) -> FoundVersion | None:
        manifest: Manifest | None = None
        problem: str | None = None
        listing = Listing({}, 0)
        try:
            listing = list_files(folder, root)
            if MANIFEST_FILE in listing.files:
                self._used.append(folder / MANIFEST_FILE)
                manifest = self._manifests.get(folder / MANIFEST_FILE)
            problem = "holds no files" if manifest is None and not listing.files else None
            if manifest is not None:
                problem = _stranger(manifest, key) or _difference(manifest, listing)
        except RegistryError as error:
            problem = str(error)
        except FileNotFoundError:  # removed while we looked
            return None
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        newest_s = listing.newest_ns / 1e9
        # a time ahead of our clock by more than settle_s is not activity: it would keep the version out until then
        settled = manifest is not None or abs(self._now_s() - newest_s) >= self._settle_s
        size_bytes = sum(file.bytes for file in listing.files.values())
        stamp = _stamp(listing, folder.parent / SETTINGS_FILE)
        shown = None if problem is None else _printable(problem)
        return FoundVersion(key, folder, stamp, shown, settled, manifest, size_bytes, newest_s)


def _is_inner_folder(folder: Path, root: Path) -> bool:
    return folder.is_dir() and (not folder.is_symlink() or folder.resolve().is_relative_to(root))


def _stranger(manifest: Manifest, key: VersionKey) -> str | None:
    if (manifest.model, manifest.version) != key:
        return f"{MANIFEST_FILE} is that of {manifest.model}:{manifest.version}, not of {key}"
    return None


def _difference(manifest: Manifest, listing: Listing) -> str | None:
    """The first file whose presence or size is not what the manifest says."""
    for path, promised in manifest.files.items():
        found = listing.files.get(path)
        if found is None:
            return f"{path} is missing"
        if found.bytes != promised.bytes:
            return f"{path} has {found.bytes} bytes, its manifest says {promised.bytes}"
    for path in sorted(listing.files):
        if path != MANIFEST_FILE and path not in manifest.files:
            return f"{path} is not listed in {MANIFEST_FILE}"
    return None


def _stamp(listing: Listing, settings_file: Path) -> str:
    parts = [f"{path}\0{file.bytes}\0{file.mtime_ns}\0{file.inode}" for path, file in sorted(listing.files.items())]
    try:
        found = settings_file.stat()
        parts.append(f"{found.st_size}\0{found.st_mtime_ns}\0{found.st_ino}")
    except OSError:
        parts.append("")
    return hashlib.sha256(os.fsencode("\n".join(parts))).hexdigest()


def _printable(name: str) -> str:
    """A name, or a text with one in it, as UTF-8 can carry it: file names may hold any bytes."""
    return os.fsencode(name).decode(errors="backslashreplace")
