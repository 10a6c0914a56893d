"""Is what a recipe made again the version that is recorded? **Pure.**

Floor 2: compares documents and digests, and names every reason. `rebuild` runs recipes, and whoever has backends says whether
golden examples still hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, JsonValue

from server.registry.manifest import Data, Environment, FileDigest, Manifest, ManifestFields

_FAULTS = {"missing": "the recipe did not write it", "differs": "other bytes"}


class Verdict(StrEnum):
    """How a rebuilt version compares. The first that holds of: an input that is missing or has changed; every file that
    a recipe can write byte for byte; golden examples and metrics within tolerance; anything else.
    """

    NOT_REPRODUCIBLE = "not reproducible"
    IDENTICAL = "identical"
    EQUIVALENT = "equivalent"
    DIFFERENT = "different"


class Reproduction(BaseModel):
    """What came of rebuilding one version.

    `reasons` are what keeps it from being identical, and `environment` in what way interpreter and packages are not the
    recorded ones: that forbids nothing, and is where to look first if the result differs. `files` are the version's, each
    `same`, `differs`, `missing` or `derived` (see `compare_files`); none where the recipe did not get that far. `notes` explain
    and decide nothing. `kept` is where the rebuilt files are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    version: int
    verdict: Verdict
    reasons: tuple[str, ...]
    environment: tuple[str, ...] = ()
    files: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    kept: str | None = None


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What the recipe left behind. `facts` are its own words, `files` the digests of everything it wrote."""

    facts: ManifestFields
    files: Mapping[str, FileDigest]


def compare_files(recorded: Manifest, files: Mapping[str, FileDigest]) -> dict[str, str]:
    """For each file of the version: `same`, `differs`, or, where the recipe did not write it, `derived` (registration did) or
    `missing`.
    """
    absent = {path: "derived" if path in recorded.derived else "missing" for path in recorded.files}
    return {
        path: absent[path] if path not in files else "same" if files[path] == digest else "differs"
        for path, digest in recorded.files.items()
    }


def judge(
    recorded: Manifest, rebuilt: Rebuilt, environment: tuple[str, ...], golden_fault: str | None, tolerance: float
) -> Reproduction:
    """The verdict. `environment` is what `environment_differences` found, `golden_fault` why the rebuilt files do not give the
    recorded golden answers (None: they do, or every file is the same).

    Units: a metric is close where |rebuilt - recorded| <= tolerance + tolerance * |recorded|.
    """
    files = compare_files(recorded, rebuilt.files)
    odd = [f"{path}: {_FAULTS[how]}" for path, how in files.items() if how in _FAULTS]
    changed = changed_inputs(recorded, rebuilt.facts)
    metrics = changed_metrics(recorded.metrics, rebuilt.facts.metrics, tolerance)
    if changed:
        verdict, reasons = Verdict.NOT_REPRODUCIBLE, [*changed, *odd, *metrics]
    elif not odd and not metrics:
        verdict, reasons = Verdict.IDENTICAL, []
    elif golden_fault is None and not metrics and "missing" not in files.values():
        verdict, reasons = Verdict.EQUIVALENT, odd
    else:
        verdict, reasons = Verdict.DIFFERENT, [*odd, *([golden_fault] if golden_fault is not None else []), *metrics]
    surplus = sorted(set(rebuilt.files) - set(recorded.files))
    notes = [f"written by the recipe and no file of the version: {', '.join(surplus)}"] if surplus else []
    derived = [path for path, how in files.items() if how == "derived"]
    if derived:
        notes.append(f"made at registration, and not by the recipe, so not compared: {', '.join(derived)}")
    return Reproduction(
        model=recorded.model,
        version=recorded.version,
        verdict=verdict,
        reasons=tuple(reasons),
        environment=environment,
        files=files,
        notes=tuple(notes),
    )


def changed_inputs(recorded: ManifestFields, facts: ManifestFields) -> list[str]:
    """Every input that the recipe says it used and that is not the recorded one: data, seeds, hyperparameters."""
    return [
        *_changed_data(recorded.data, facts.data),
        *_changed_values("seed", recorded.seeds, facts.seeds),
        *_changed_values("hyperparameter", recorded.hyperparameters, facts.hyperparameters),
    ]


def changed_metrics(recorded: Mapping[str, float], rebuilt: Mapping[str, float], tolerance: float) -> list[str]:
    """Every recorded metric that the recipe measured differently by more than the tolerance, or did not measure."""
    changed = []
    for name, value in recorded.items():
        again = rebuilt.get(name)
        if again is None:
            changed.append(f"metric {name}: recorded {value:.9g}, rebuilt none")
        elif not abs(again - value) <= tolerance + tolerance * abs(value):
            changed.append(f"metric {name}: recorded {value:.9g}, rebuilt {again:.9g}")
    return changed


def environment_differences(recorded: Environment, here: Environment) -> tuple[str, ...]:
    """In what way the interpreter, machine and packages here are not the recorded ones."""
    differences = []
    for name, then, now in (
        ("python", recorded.python, here.python),
        ("platform", recorded.platform, here.platform),
        ("lock digest", recorded.lock_digest, here.lock_digest),
    ):
        if then != now:
            differences.append(f"{name} {then or 'not'} recorded, {now or 'none'} here")
    for package in sorted({*recorded.packages, *here.packages}):
        before, after = recorded.packages.get(package), here.packages.get(package)
        if before != after:
            differences.append(f"{package} {before or 'not'} recorded, {after or 'not'} installed")
    return tuple(differences)


def _changed_data(recorded: Data | None, facts: Data | None) -> list[str]:
    if recorded is None:
        return []
    if facts is None:
        return ["data: the recipe does not say what it read"]
    pairs: list[tuple[str, object, object]] = [
        ("source", recorded.source, facts.source),
        ("digest", recorded.digest, facts.digest),
        ("rows", recorded.rows, facts.rows),
        *((name, note, facts.notes.get(name)) for name, note in recorded.notes.items()),
    ]
    return [f"data, {name}: recorded {_word(then)}, rebuilt {_word(now)}" for name, then, now in pairs if then != now]


def _changed_values(kind: str, recorded: Mapping[str, JsonValue], facts: Mapping[str, JsonValue]) -> list[str]:
    return [
        f"{kind} {name}: recorded {_word(recorded.get(name))}, rebuilt {_word(facts.get(name))}"
        for name in sorted({*recorded, *facts})
        if recorded.get(name) != facts.get(name)
    ]


def _word(value: object) -> str:
    return "none" if value is None else str(value)
