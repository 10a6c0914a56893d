"""The servers that `native_plane` compares, all on one core, idle but for the one whose turn it is; and one verified turn."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.models import TRIVIAL, write_identity, write_mlp
from bench.native_client import TOLERANCE, load, write_expected
from bench.processes import cpu_s, podium, reference

MODELS = {"mlp": list(TRIVIAL), "identity": [16], "body_150k": [37_500], "body_600k": [150_000]}
"""Widths; all but the first answer what they were sent."""


@dataclass(frozen=True)
class Serving:
    """Where a server listens, its process, and how to ask each model."""

    address: str
    process: psutil.Process
    payload: Mapping[str, tuple[str | float | Path, ...]]


Servers = Mapping[str, Serving]


@dataclass(frozen=True)
class Turn:
    """Units: right answers per second; microseconds; CPU time of the server and of the client for each request."""

    rate: float
    p50_us: float
    p99_us: float
    cpu_us: float
    client_cpu_us: float
    lateness_p99_us: float


def models(folder: Path) -> None:
    """Write the repository, and the rows with known answers of the network."""
    for name, widths in MODELS.items():
        path = folder / "models" / name / "1" / "model.onnx"
        if name == "mlp":
            write_mlp(path, tuple(widths), seed=7)
            write_expected(folder / "expected", path, widths[0])
        else:
            write_identity(path, widths[0])


@contextmanager
def servers(folder: Path, plane: str) -> Iterator[Servers]:
    """The plane under test, the Python plane, and a bare servicer for each of the two small models."""
    payload: dict[str, tuple[str | float | Path, ...]] = {
        name: ("--bytes", widths[0] * 4) if name != "mlp" else ("--expected", folder / "expected", "--tolerance", TOLERANCE)
        for name, widths in MODELS.items()
    }
    found = {}
    with ExitStack() as stack:
        for kind in dict.fromkeys([plane, "python"]):
            (folder / kind).mkdir()
            flags = ["--data-plane", kind, "--control-mode", "explicit"]
            flags += [word for name in MODELS for word in ("--load-model", name)]
            address, _, process = stack.enter_context(podium(folder / "models", folder / kind, *flags))
            found[kind] = Serving(address, process, payload)
        for model in ("mlp", "identity"):
            (folder / f"bare_{model}").mkdir()
            path = folder / "models" / model / "1" / "model.onnx"
            address, process = stack.enter_context(reference(path, folder / f"bare_{model}"))
            found[f"bare_{model}"] = Serving(address, process, payload)
        yield found


def asked(server: Serving, model: str, *options: str | float | Path, patience_s: float = 60.0) -> dict[str, Any]:
    """One run of the client against one model."""
    return load(server.address, model, *server.payload[model], *options, patience_s=patience_s)


def turn(server: Serving, model: str, *options: str | float | Path) -> Turn:
    """A second of warm-up, then one measured run. Raises: RuntimeError when an answer was wrong or missing."""
    asked(server, model, *options, "--seconds", 1)
    before_s = cpu_s(server.process)
    report = asked(server, model, *options)
    used_s = cpu_s(server.process) - before_s
    if not report["right"] or report["right"] != report["requests"]:
        raise RuntimeError(f"{model}: not every answer was right: {report}")
    return Turn(
        rate=report["rate"],
        p50_us=report["latency_us"]["p50"],
        p99_us=report["latency_us"]["p99"],
        cpu_us=used_s / report["requests"] * 1e6,
        client_cpu_us=report["cpu_us_per_request"],
        lateness_p99_us=report["lateness_us"]["p99"],
    )
