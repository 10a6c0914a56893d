"""What one version was made from: `manifest.json`. **Pure.**

Floor 2: the registry writes it once, beside the files whose digests it lists, and nobody changes it afterwards. Unknown
keys are refused: a field this program does not understand could be the one that says "do not use".
"""

from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from server.core.errors import RegistryError

MANIFEST_FILE = "manifest.json"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[int, Field(gt=0, lt=10**18)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Tolerance = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileDigest(_Table):
    """One file of a version. Units: `bytes` is its size."""

    sha256: Sha256
    bytes: int = Field(ge=0)


class Code(_Table):
    """The commit that trained the version; `dirty` means the working tree held more than that commit."""

    commit: str = Field(min_length=1)
    dirty: bool
    repository: str | None = None


class Data(_Table):
    """Training data: where it came from, a digest of its content, and how it was cut."""

    source: str = Field(min_length=1)
    digest: str | None = None
    rows: int | None = Field(None, ge=0)
    notes: dict[str, str] = Field(default_factory=dict)


class Environment(_Table):
    """The interpreter and packages that were installed; `lock_digest` is the SHA-256 of the constraints file."""

    python: str
    platform: str
    lock_digest: Sha256 | None = None
    packages: dict[str, str] = Field(default_factory=dict)


class Recipe(_Table):
    """What to run again: a command or a `python -m` module, with its arguments."""

    command: str = Field(min_length=1)
    arguments: tuple[str, ...] = ()


class GoldenRef(_Table):
    """Which file of the version holds its golden examples, and how far an answer may be from them."""

    file: str
    rtol: Tolerance
    atol: Tolerance


class ManifestFields(_Table):
    """What only the one who registers a version can know. Everything may be absent; `missing_to_rebuild` says what is."""

    author: str | None = None
    run_id: str | None = None
    code: Code | None = None
    data: Data | None = None
    seeds: dict[str, int] = Field(default_factory=dict)
    hyperparameters: dict[str, JsonValue] = Field(default_factory=dict)
    environment: Environment | None = None
    metrics: dict[str, Finite] = Field(default_factory=dict)
    recipe: Recipe | None = None
    parent: Version | None = None

    @model_validator(mode="after")
    def _writable(self) -> Self:
        if not _finite(self.hyperparameters):
            raise ValueError("hyperparameters hold a number that JSON cannot write (NaN or infinity)")
        return self


class Manifest(ManifestFields):
    """One immutable version. `files` lists every file of the folder but this one, by path relative to it.

    `derived`: those of them that were made at registration, from the others and from what the recipe knows nothing of. A file
    that registration cannot make is never one: it could not be told from one that nobody can make again.
    """

    schema_version: Literal[1] = 1
    model: str
    version: Version
    created_at: AwareDatetime
    files: dict[str, FileDigest] = Field(min_length=1)
    golden: GoldenRef | None = None
    derived: tuple[Literal["baseline.json"], ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for path in self.files:
            fault = path_fault(path)
            if fault:
                raise ValueError(f"file {path!r} {fault}")
        if self.golden is not None and self.golden.file not in self.files:
            raise ValueError(f"golden examples {self.golden.file!r} are not among the files")
        for path in self.derived:
            if path not in self.files:
                raise ValueError(f"derived file {path!r} is not among the files")
        if self.parent == self.version:
            raise ValueError(f"version {self.version} cannot be its own parent")
        return self


def path_fault(path: str) -> str | None:
    """What forbids `path` as a file of a version, or None.

    Hidden names are forbidden because temp files and file-system litter are recognised by their leading dot.
    """
    parts = PurePosixPath(path).parts
    if not path or "\\" in path or "\0" in path or path != "/".join(parts):
        return "is not a plain relative path"
    if path.startswith("/") or any(part.startswith(".") for part in parts):
        return "is absolute, hidden or leads upwards"
    if path == MANIFEST_FILE:
        return "is the manifest itself"
    return None


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest. Raises: RegistryError naming every key that is wrong."""
    try:
        return Manifest.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise RegistryError(f"{MANIFEST_FILE}: {faults(error)}") from None


def parse_fields(data: bytes) -> ManifestFields:
    """Read the part of a manifest that the registering side brings. Raises: RegistryError naming every wrong key."""
    try:
        return ManifestFields.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise RegistryError(f"manifest fields: {faults(error)}") from None


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as it is written: `parse_manifest` of it gives the same manifest back."""
    return (manifest.model_dump_json(indent=2) + "\n").encode()


def faults(error: ValidationError) -> str:
    """Every fault of a refused document on one line, each with the path of its key."""
    texts = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        where = ".".join(map(str, fault["loc"]))
        what = "unknown key" if fault["type"] == "extra_forbidden" else fault["msg"]
        texts.append(f"{where}: {what}" if where else what)
    return "; ".join(texts)


def missing_to_rebuild(manifest: Manifest) -> list[str]:
    """What a person would lack who wanted to make this version again; empty when nothing is."""
    missing = []
    if manifest.code is None:
        missing.append("code commit")
    elif manifest.code.dirty:
        missing.append(f"uncommitted changes on top of commit {manifest.code.commit}")
    if manifest.data is None:
        missing.append("training data source and digest")
    elif manifest.data.digest is None:
        missing.append("training data digest")
    if not manifest.seeds:
        missing.append("seeds")
    if not manifest.hyperparameters:
        missing.append("hyperparameters")
    if manifest.environment is None:
        missing.append("environment")
    elif manifest.environment.lock_digest is None:
        missing.append("environment lock digest")
    if manifest.recipe is None:
        missing.append("recipe and its arguments")
    return missing


def _finite(value: JsonValue) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    # NaN is the only value that differs from itself
    return not isinstance(value, float) or (value == value and abs(value) != float("inf"))
