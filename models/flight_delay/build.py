"""The recipe: from the data package to served files, and from there into the repository.

`python -m models.flight_delay.build --out FOLDER` writes every file of a version, the network twice among them, as `model.onnx`
and as `program.pt2`, and `facts.json`, what the recipe says of them; with `--register` they become the next version instead.
`--inputs` chooses the variant: "schedule" is told what a timetable tells, "history" also what happened lately, as features; its
files include the contract about them. `baseline.json` is what the version is monitored by: June, as the file answers it.
Trained on January to May; June chooses the epoch and is what the metrics are measured on; July to December are never looked at.
Two builds with the same arguments on one kind of machine write the same bytes.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from feature_client.contract import write_contract
from feature_client.feature_set import FeatureSet
from models.flight_delay import export, metrics, program
from models.flight_delay.data import Flights, load
from models.flight_delay.examples import as_rows, choose
from models.flight_delay.facts import (
    COMMAND,
    ROOT,
    TRAIN_MONTHS,
    VALID_MONTH,
    data_facts,
    hyperparameters,
    identity,
    recipe_arguments,
)
from models.flight_delay.features import VIEWS
from models.flight_delay.history import load_history
from models.flight_delay.inputs import VARIANTS, Variant
from models.flight_delay.model import Fitted, encode, fit
from models.flight_delay.registration import CONTRACT_FILES, MODEL, MODEL_FILE, PROGRAM_FILE, register_build, reusable
from models.flight_delay.training import Settings, predict, train
from server.core.errors import PodiumError
from server.core.tensors import Array
from server.core.versions import VersionKey
from server.monitoring.baseline import Baseline
from server.monitoring.baseline_document import BASELINE_FILE, to_document
from server.monitoring.validation_rows import baseline_of
from server.registry.durable import write_atomically
from server.registry.environment import completed
from server.registry.golden import GOLDEN_FILE, save_golden
from server.registry.manifest import ManifestFields
from server.registry.rebuild import FACTS_FILE
from server.registry.resolve import DEFAULT_ALIAS
from server.registry.source import SETTINGS_FILE, parse_settings

SCHEDULE_ALIAS = "schedule"
"""The alias by which the demo keeps the variant that reads no features."""
AGREEMENT = 1e-5
"""Largest difference allowed between the probability of ONNX Runtime and that of torch, or of the torch program, on any June
row (measured: below 1e-6)."""


@dataclass(frozen=True)
class BuildResult:
    """What one build leaves behind: `files` are those of a version, by their path in it, golden examples included.

    `facts` are the fields of the manifest that the recipe knows (`data`, `seeds`, `hyperparameters`, `metrics`, `recipe`):
    equal for equal builds. Shapes: golden arrays are `[examples.ROWS, 1]`. Units: `train_s`, `total_s` in seconds.
    """

    model_file: Path
    files: dict[str, Path]
    facts: dict[str, Any]
    golden_inputs: dict[str, Array]
    golden_outputs: dict[str, Array]
    train_s: float
    total_s: float


def build(
    out: Path, settings: Settings | None = None, *, limit_rows: int | None = None, variant: Variant = "schedule"
) -> BuildResult:
    """Train, export, measure, and write the files of a version and `facts.json` into `out`.

    `limit_rows` takes that many evenly spaced rows of either side: a quick build whose metrics say little.
    Raises: ValueError where an exported file does not answer as the trained network does.
    """
    settings = settings or Settings()
    began = time.monotonic()
    flights = load() if variant == "schedule" else load_history().flights
    june = flights.months(VALID_MONTH)
    rows, valid = _limited(flights.months(*TRAIN_MONTHS), limit_rows), _limited(june, limit_rows)
    fitted = fit(rows, VARIANTS[variant])
    training_began = time.monotonic()
    trained = train(rows, valid, fitted, settings)
    train_s = time.monotonic() - training_began
    content = export.to_onnx(trained.model, fitted)
    program_content = program.to_program(trained.model, fitted)
    outputs = export.predict(content, as_rows(valid.inputs))
    served = outputs["probability"][:, 0].astype(np.float64)
    differences = {
        "torch_onnx_max_difference": _distance(served, predict(trained.model, valid, fitted)),
        "program_onnx_max_difference": _distance(served, program.predict(program_content, valid, fitted)),
    }
    if not max(differences.values()) <= AGREEMENT:
        raise ValueError(
            f"the exported files answer up to {max(differences.values()):.1e} away from the network;"
            f" at most {AGREEMENT:.0e} is allowed"
        )
    golden_inputs = choose(june, fitted.inputs)
    facts = {
        "data": data_facts(rows, valid, flights.unlabelled),
        "seeds": {"torch": settings.seed},
        "hyperparameters": hyperparameters(settings) | {"best_epoch": trained.best_epoch},
        "metrics": measure(content, rows, valid, fitted) | differences,
        "recipe": {"command": COMMAND, "arguments": recipe_arguments(settings, limit_rows, variant)},
    }
    golden_outputs = export.predict(content, golden_inputs)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / MODEL_FILE, content)
    write_atomically(out / PROGRAM_FILE, program_content)
    save_golden(out / GOLDEN_FILE, golden_inputs, golden_outputs)
    write_atomically(out / BASELINE_FILE, to_document(profile(valid, outputs, variant)))
    names = [MODEL_FILE, PROGRAM_FILE, GOLDEN_FILE, BASELINE_FILE]
    if variant == "history":
        write_contract(out, FeatureSet(VIEWS))
        names += CONTRACT_FILES
    write_atomically(out / FACTS_FILE, (json.dumps(facts, indent=2) + "\n").encode())
    return BuildResult(
        model_file=out / MODEL_FILE,
        files={name: out / name for name in names},
        facts=facts,
        golden_inputs=golden_inputs,
        golden_outputs=golden_outputs,
        train_s=train_s,
        total_s=time.monotonic() - began,
    )


def profile(valid: Flights, outputs: Mapping[str, Array], variant: Variant) -> Baseline:
    """What the version is monitored by: the rows it was validated with, as the exported file answers them, and what came true.

    No latencies: two builds would not write the same bytes. Shapes: `outputs` `[rows, 1]`.
    """
    settings = parse_settings((ROOT / "models" / MODEL / SETTINGS_FILE).read_bytes())
    return baseline_of(
        VersionKey(MODEL, 1),
        as_rows(valid.inputs),
        outputs,
        settings,
        time_us=valid.departs_s * 10**6,
        labels=valid.late.astype(np.float64),
        features=tuple(FeatureSet(VIEWS).features) if variant == "history" else (),
    )


def answers(content: bytes, flights: Flights) -> metrics.Floats:
    """Probabilities by the file itself. Shapes: `[rows]`."""
    probability: metrics.Floats = export.predict(content, as_rows(flights.inputs))["probability"][:, 0].astype(np.float64)
    return probability


def measure(content: bytes, rows: Flights, valid: Flights, fitted: Fitted) -> dict[str, float]:
    """Metrics of the file on `valid`, beside those of two baselines that also saw only `rows`."""
    variables = [
        {"carrier": encode(part, fitted)[:, 0], "hour": part.inputs["departure_minute"].astype(np.int64) // 60}
        for part in (rows, valid)
    ]
    predictions = {
        "june": answers(content, valid),
        "june_constant": np.full(valid.rows, rows.late.mean()),
        "june_logistic": metrics.logistic(variables[0], rows.late, variables[1]),
    }
    measured = {name: metrics.measure(valid.late, values) for name, values in predictions.items()}
    return {f"{name}_{key}": value for name, values in measured.items() for key, value in values.items()}


def _distance(one: metrics.Floats, other: metrics.Floats) -> float:
    return float(np.abs(one - other).max())


def _limited(flights: Flights, limit_rows: int | None) -> Flights:
    if limit_rows is None or limit_rows >= flights.rows:
        return flights
    return flights.take(np.linspace(0, flights.rows - 1, limit_rows).astype(np.int64))


@dataclass(frozen=True)
class Registered:
    """The version that the alias is on now; `built` is None where it was there already. `reason`: why it was built or not."""

    key: VersionKey
    built: BuildResult | None
    reason: str


def ensure_registered(
    repository: Path,
    settings: Settings,
    *,
    limit_rows: int | None = None,
    alias: str = DEFAULT_ALIAS,
    reuse: bool = False,
    variant: Variant = "schedule",
) -> Registered:
    """Build and register; with `reuse` only if that could give anything but the version that `alias` is on.

    Raises: PodiumError for what the registry refuses; OSError from the disk; ValueError as `build` does.
    """
    wanted = identity(settings, limit_rows, variant)
    reason = "it was asked for"
    if reuse:
        key, reason = reusable(repository, wanted, alias)
        if key is not None:
            return Registered(key, None, reason)
    with TemporaryDirectory(prefix="podium-build-") as folder:
        built = build(Path(folder), settings, limit_rows=limit_rows, variant=variant)
        seen = {"code": wanted.code, "environment": wanted.environment}
        fields = completed(ManifestFields.model_validate(built.facts).model_copy(update=seen), ROOT, None)
        key = register_build(repository, built.files, fields, alias)
    return Registered(key, built, reason)


def main(arguments: list[str]) -> int:
    """Build into `--out` and print the facts as JSON, or register and say which version it became."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Build the flight delay model.")
    parser.add_argument(
        "--out", type=Path, default=Path("build/flight_delay"), help="folder for the files of a version, and facts.json"
    )
    parser.add_argument("--register", action="store_true", help="write the next version of the repository instead")
    parser.add_argument("--repository", type=Path, default=ROOT / "models", help="default: %(default)s")
    parser.add_argument("--alias", default=DEFAULT_ALIAS, help="which alias moves to the new version (default: %(default)s)")
    parser.add_argument("--inputs", choices=sorted(VARIANTS), default="schedule", help="variant (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--limit-rows", type=int, default=None, help="quick build on that many evenly spaced rows")
    given = parser.parse_args(arguments)
    settings = Settings(seed=given.seed, epochs=given.epochs)
    if given.register:
        try:
            registered = ensure_registered(
                given.repository, settings, limit_rows=given.limit_rows, alias=given.alias, variant=given.inputs
            )
        except PodiumError as error:
            print(f"{COMMAND}: {error}", file=sys.stderr)
            return 1
        print(f"registered {registered.key} @{given.alias} in {given.repository}")
        return 0
    result = build(given.out, settings, limit_rows=given.limit_rows, variant=given.inputs)
    print(json.dumps(result.facts, indent=2))
    print(f"{result.model_file}: trained in {result.train_s:.1f} s, {result.total_s:.1f} s in all", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
