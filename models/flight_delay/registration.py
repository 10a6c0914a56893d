"""From a finished build to a version in the repository, and back to the version that serves.

Everything goes through the registry's own functions: a version is whole or not there. This file never trains.
"""

from collections.abc import Mapping
from pathlib import Path

from models.flight_delay.facts import difference
from server.core.errors import NotFound, RegistryError
from server.core.versions import VersionKey
from server.registry.golden import GOLDEN_FILE
from server.registry.manifest import ManifestFields
from server.registry.register import GoldenSource, register
from server.registry.resolve import DEFAULT_ALIAS, resolve_version
from server.registry.source import SETTINGS_FILE, FoundVersion, LocalDirectory

MODEL = "flight_delay"
MODEL_FILE = "model.onnx"
PROGRAM_FILE = "program.pt2"
CONTRACT_FILES = ("features.json", "features.npz")
"""Of a version that is given features: what it was trained on, and examples of how each is computed."""
GOLDEN_RTOL, GOLDEN_ATOL = 1e-5, 1e-6
"""How far another machine's answer to a golden example may be: float32 sums in another order differ in the last bits."""

_HERE = Path(__file__).resolve().parent


def find(repository: Path, alias: str = DEFAULT_ALIAS) -> FoundVersion | None:
    """The version that `alias` is on; None where there is none, or its folder is gone."""
    if not repository.is_dir():
        return None
    model = LocalDirectory(repository, settle_s=0.0).scan().get(MODEL)
    if model is None:
        return None
    try:
        return model.versions[resolve_version(model, f"@{alias}").version]
    except NotFound:
        return None


def reusable(repository: Path, wanted: ManifestFields, alias: str) -> tuple[VersionKey | None, str]:
    """The version that `alias` is on where a build would give the same, and in either case the reason.

    Only a version whose every file is as its manifest says is worth keeping.
    """
    version = find(repository, alias)
    if version is None:
        return None, f"no version is {alias} yet"
    if version.manifest is None:
        return None, f"{version.key} has no manifest"
    try:
        LocalDirectory(repository, settle_s=0.0).verify(version)
    except RegistryError as error:
        return None, str(error)
    reason = difference(version.manifest, wanted)
    if reason is not None:
        return None, f"not {version.key}: {reason}"
    return version.key, "commit, data, packages and arguments are the same"


def register_build(
    repository: Path,
    files: Mapping[str, Path],
    fields: ManifestFields,
    alias: str,
) -> VersionKey:
    """Register a build as the next version, child of the present champion, and move `alias` to it.

    `files` are those of the version by their path in it, golden examples among them; which of the two model files is served is
    for `model.toml` to say. The repository is created where it is not there.
    Raises: PodiumError for what the registry refuses; OSError from the disk.
    """
    champion = find(repository)
    parent = None if champion is None else champion.key.version
    repository.mkdir(parents=True, exist_ok=True)
    return register(
        repository,
        MODEL,
        {path: file for path, file in files.items() if path != GOLDEN_FILE},
        fields.model_copy(update={"parent": parent}),
        golden=GoldenSource(files[GOLDEN_FILE], GOLDEN_RTOL, GOLDEN_ATOL),
        aliases=[alias],
        settings_file=_HERE / SETTINGS_FILE,
    )
