"""The recipe: from the data package to a served file. `python -m models.flight_delay.build --out FOLDER`.

Trained on January to May; June chooses the epoch and is what the metrics are measured on; July to December are never
looked at. Two builds with the same arguments on one kind of machine write the same bytes.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.flight_delay import export, metrics
from models.flight_delay.data import Flights, load, source
from models.flight_delay.examples import as_rows, choose
from models.flight_delay.model import Fitted, encode, fit
from models.flight_delay.training import Settings, predict, train
from server.core.tensors import Array

TRAIN_MONTHS = (1, 2, 3, 4, 5)
VALID_MONTH = 6
MODEL_FILE = "model.onnx"
AGREEMENT = 1e-5
"""Largest difference allowed between torch's and ONNX Runtime's probability on any June row (measured: below 1e-6)."""
GOLDEN_RTOL, GOLDEN_ATOL = 1e-5, 1e-6
"""How far another machine's answer to a golden example may be: float32 sums in another order differ in the last bits."""


@dataclass(frozen=True)
class BuildResult:
    """What one build leaves behind.

    `facts` are the fields of the manifest that the recipe knows (`data`, `seeds`, `hyperparameters`, `metrics`, `recipe`):
    equal for equal builds. Shapes: golden arrays are `[examples.ROWS, 1]`. Units: `train_s`, `total_s` in seconds.
    """

    model_file: Path
    facts: dict[str, Any]
    golden_inputs: dict[str, Array]
    golden_outputs: dict[str, Array]
    train_s: float
    total_s: float


def build(out: Path, settings: Settings | None = None, *, limit_rows: int | None = None) -> BuildResult:
    """Train, export, measure, and write `model.onnx` into `out`.

    `limit_rows` takes that many evenly spaced rows of either side: a quick build whose metrics say little.
    Raises: ValueError where the exported file does not answer as the trained network does.
    """
    settings = settings or Settings()
    began = time.monotonic()
    flights = load()
    june = flights.months(VALID_MONTH)
    rows, valid = _limited(flights.months(*TRAIN_MONTHS), limit_rows), _limited(june, limit_rows)
    fitted = fit(rows)
    training_began = time.monotonic()
    trained = train(rows, valid, fitted, settings)
    train_s = time.monotonic() - training_began
    content = export.to_onnx(trained.model, fitted)
    difference = float(np.abs(answers(content, valid) - predict(trained.model, valid, fitted)).max())
    if not difference <= AGREEMENT:
        raise ValueError(
            f"the exported file answers up to {difference:.1e} away from the network; at most {AGREEMENT:.0e} is allowed"
        )
    golden_inputs = choose(june)
    facts = {
        "data": _data_facts(rows, valid, flights.unlabelled),
        "seeds": {"torch": settings.seed},
        "hyperparameters": _hyperparameters(settings) | {"best_epoch": trained.best_epoch},
        "metrics": measure(content, rows, valid, fitted) | {"torch_onnx_max_difference": difference},
        "recipe": {"command": "python -m models.flight_delay.build", "arguments": _arguments(settings, limit_rows)},
    }
    return BuildResult(
        model_file=_write(out / MODEL_FILE, content),
        facts=facts,
        golden_inputs=golden_inputs,
        golden_outputs=export.predict(content, golden_inputs),
        train_s=train_s,
        total_s=time.monotonic() - began,
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


def _data_facts(rows: Flights, valid: Flights, unlabelled: int) -> dict[str, Any]:
    origin = source()
    digests: dict[str, str] = origin["sha256"]
    listing = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    notes = {f"sha256 of {name}": digest for name, digest in digests.items()} | {
        "training": f"months {TRAIN_MONTHS[0]} to {TRAIN_MONTHS[-1]} of 2013, {rows.rows} rows",
        "validation": f"month {VALID_MONTH} of 2013, {valid.rows} rows",
        "excluded": f"{unlabelled} cancelled or diverted flights of the year: no arrival delay",
    }
    return {
        "source": f"PyPI package {origin['package']} {origin['version']}",
        "digest": f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}",
        "rows": rows.rows,
        "notes": notes,
    }


def _hyperparameters(settings: Settings) -> dict[str, Any]:
    values = dataclasses.asdict(settings)
    del values["seed"]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _arguments(settings: Settings, limit_rows: int | None) -> list[str]:
    arguments = ["--seed", str(settings.seed), "--epochs", str(settings.epochs)]
    return arguments if limit_rows is None else [*arguments, "--limit-rows", str(limit_rows)]


def _limited(flights: Flights, limit_rows: int | None) -> Flights:
    if limit_rows is None or limit_rows >= flights.rows:
        return flights
    return flights.take(np.linspace(0, flights.rows - 1, limit_rows).astype(np.int64))


def _write(path: Path, content: bytes) -> Path:
    """Write atomically: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return partial.replace(path)


def main(arguments: list[str]) -> int:
    """Build into `--out` and print the facts as JSON."""
    parser = argparse.ArgumentParser(prog="python -m models.flight_delay.build", description="Build the flight delay model.")
    parser.add_argument("--out", type=Path, default=Path("build/flight_delay"), help="folder for model.onnx")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--limit-rows", type=int, default=None, help="quick build on that many evenly spaced rows")
    given = parser.parse_args(arguments)
    result = build(given.out, Settings(seed=given.seed, epochs=given.epochs), limit_rows=given.limit_rows)
    print(json.dumps(result.facts, indent=2))
    print(f"{result.model_file}: trained in {result.train_s:.1f} s, {result.total_s:.1f} s in all", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
