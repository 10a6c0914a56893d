"""What the lifecycle needs to know of the registry: versions on disk, and one way to distrust them. **Pure.**

Floor 4: names only, so that this room is tested without a disk. `server.registry.source` has what fits them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from server.core.settings import ModelSettings
from server.core.versions import VersionKey


class GoldenRef(Protocol):
    """Which file of a version holds its golden examples, and how far an answer may be from them."""

    @property
    def file(self) -> str:
        """Path relative to the version's folder."""
        ...

    @property
    def rtol(self) -> float:
        """Relative tolerance."""
        ...

    @property
    def atol(self) -> float:
        """Absolute tolerance."""
        ...


class Manifest(Protocol):
    """The part of a version's manifest that loading reads."""

    @property
    def golden(self) -> GoldenRef | None:
        """None: the version brings no golden examples."""
        ...


class FoundVersion(Protocol):
    """One version as the last scan saw it."""

    @property
    def key(self) -> VersionKey:
        """Model and version."""
        ...

    @property
    def folder(self) -> Path:
        """The version's own folder."""
        ...

    @property
    def stamp(self) -> str:
        """Equal for two scans exactly when nothing of the version has changed between them."""
        ...

    @property
    def problem(self) -> str | None:
        """Why this version cannot be loaded, or None."""
        ...

    @property
    def settled(self) -> bool:
        """False while its files are still being written."""
        ...

    @property
    def manifest(self) -> Manifest | None:
        """None for a bare model file."""
        ...

    @property
    def size_bytes(self) -> int:
        """All its files together."""
        ...


class FoundModel(Protocol):
    """One model as the last scan saw it. `settings` is None where `problem` says that they could not be read."""

    @property
    def name(self) -> str:
        """The folder's name."""
        ...

    @property
    def settings(self) -> ModelSettings | None:
        """`model.toml`, or the defaults where there is none."""
        ...

    @property
    def versions(self) -> Mapping[int, FoundVersion]:
        """Every version folder, loadable or not."""
        ...

    @property
    def aliases(self) -> Mapping[str, int]:
        """Names for versions, "champion" among them."""
        ...

    @property
    def problem(self) -> str | None:
        """Why nothing of this model can be loaded, or None."""
        ...


class Lease(Protocol):
    """Keeps a version's folder from being removed: `server.registry.lease.Hold`."""

    def release(self) -> None:
        """Give it back. Idempotent."""
        ...


class Given(Protocol):
    """A model whose files came with its Load: `server.registry.given.Given`."""

    @property
    def found(self) -> FoundModel:
        """The model as it is in the folder of these files."""
        ...

    def close(self) -> None:
        """Remove the folder. Idempotent."""
        ...


class Source(Protocol):
    """States what there is; omission means that it is gone."""

    def scan(self) -> Mapping[str, FoundModel]:
        """Every model by name. Raises: OSError, RegistryError when the repository itself cannot be read."""
        ...

    def verify(self, found: Any, /) -> None:
        """Check a found version (one of this source's own) against its digests. Raises: RegistryError."""
        ...
