"""What a build can say of itself before and after training, in the words of the manifest.

`identity` is known before anything is trained and `difference` compares it with a version that exists: together they decide
whether training again could give anything new. This file never trains and never writes.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from models.flight_delay.data import Flights, source
from models.flight_delay.inputs import Variant
from models.flight_delay.training import Settings
from server.registry.environment import collect_code, collect_environment
from server.registry.manifest import Data, Manifest, ManifestFields, Recipe

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "python -m models.flight_delay.build"
TRAIN_MONTHS = (1, 2, 3, 4, 5)
VALID_MONTH = 6

_LOCK_FILE = ROOT / "constraints.txt"


def identity(settings: Settings, limit_rows: int | None, variant: Variant) -> ManifestFields:
    """What decides the bytes of a build: code, data, packages and arguments of the recipe."""
    lock = _LOCK_FILE if _LOCK_FILE.is_file() else None
    name, digest, _ = _origin()
    return ManifestFields(
        code=collect_code(ROOT),
        data=Data(source=name, digest=digest),
        environment=collect_environment(lock),
        recipe=Recipe(command=COMMAND, arguments=tuple(recipe_arguments(settings, limit_rows, variant))),
    )


def difference(built: Manifest, wanted: ManifestFields) -> str | None:
    """Why a build of `wanted` may differ from the version `built`; None where it would be the same again.

    Doubt counts as a difference: without a commit, or with changes that are in no commit, nobody can tell.
    """
    if built.code is None or wanted.code is None:
        return "there is no commit to compare its code by"
    if built.code.dirty or wanted.code.dirty:
        return "uncommitted changes cannot be compared"
    if built.code.commit != wanted.code.commit:
        return f"it was built from commit {built.code.commit[:12]}"
    if built.data is None or wanted.data is None or built.data.digest != wanted.data.digest:
        return "it was built from other data"
    if built.recipe != wanted.recipe:
        return "it was built with other arguments"
    if _packages(built) != _packages(wanted):
        return "it was built with other packages"
    return None


def data_facts(rows: Flights, valid: Flights, unlabelled: int) -> dict[str, Any]:
    """Where the rows came from, a digest of the files, and how they were cut."""
    name, digest, digests = _origin()
    notes = {f"sha256 of {file}": value for file, value in digests.items()} | {
        "training": f"months {TRAIN_MONTHS[0]} to {TRAIN_MONTHS[-1]} of 2013, {rows.rows} rows",
        "validation": f"month {VALID_MONTH} of 2013, {valid.rows} rows",
        "excluded": f"{unlabelled} cancelled or diverted flights of the year: no arrival delay",
    }
    return {"source": name, "digest": digest, "rows": rows.rows, "notes": notes}


def hyperparameters(settings: Settings) -> dict[str, Any]:
    """Every setting but the seed, which the manifest keeps apart."""
    values = dataclasses.asdict(settings)
    del values["seed"]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def recipe_arguments(settings: Settings, limit_rows: int | None, variant: Variant) -> list[str]:
    """The command line that builds the same again."""
    given = ["--inputs", variant, "--seed", str(settings.seed), "--epochs", str(settings.epochs)]
    return given if limit_rows is None else [*given, "--limit-rows", str(limit_rows)]


def _origin() -> tuple[str, str, dict[str, str]]:
    """Name of the data package, one digest over all its files, and the digest of each."""
    origin = source()
    digests: dict[str, str] = origin["sha256"]
    listing = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    package = f"PyPI package {origin['package']} {origin['version']}"
    return package, f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}", digests


def _packages(fields: ManifestFields) -> tuple[object, ...] | None:
    """What of an environment can change numbers: not its platform string, which names the kernel's patch release."""
    environment = fields.environment
    return None if environment is None else (environment.python, environment.lock_digest, environment.packages)
