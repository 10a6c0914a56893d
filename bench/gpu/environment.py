"""Where a matrix was measured: driver, libraries, clocks, power, cores, date. Reads, and never changes a setting.

Serial numbers and unique names of devices are left out on purpose.
"""

import csv
import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.gpu.steps import run

FIELDS = (
    "name",
    "driver_version",
    "memory.total",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "persistence_mode",
    "mig.mode.current",
    "pcie.link.gen.current",
    "pcie.link.width.current",
)
"""As nvidia-smi names them: MiB, MHz, W, degrees Celsius."""
PACKAGES = ("torch", "triton", "onnxruntime", "onnxruntime-gpu", "numpy", "grpcio", "protobuf", "pydantic", "podium-native")
_TORCH = (
    "import json, torch; print(json.dumps({'cuda': torch.version.cuda, 'cudnn': torch.backends.cudnn.version(),"
    " 'device': torch.cuda.is_available()}))"
)
_LIMIT_S = 60.0


def devices() -> list[dict[str, str]]:
    """What nvidia-smi says of each GPU at this instant; nothing where there is none."""
    asked = run(("nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"), _LIMIT_S, Path.cwd())
    return parse_devices(asked.said) if asked.good else []


def parse_devices(table: str) -> list[dict[str, str]]:
    """nvidia-smi's rows, one a device.

    >>> parse_devices("A GPU, 1.2, 10" + ", [N/A]" * 11)[0]["name"], parse_devices("No devices were found")
    ('A GPU', [])
    """
    rows = csv.reader(table.splitlines(), skipinitialspace=True)
    return [dict(zip(FIELDS, row, strict=True)) for row in rows if len(row) == len(FIELDS)]


def versions() -> dict[str, str | None]:
    """Of the packages that matter; None for one that is not here."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def environment() -> dict[str, Any]:
    """All of it, as JSON takes it."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    torch = run((sys.executable, "-c", _TORCH), _LIMIT_S, Path.cwd())
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions(),
        "torch": json.loads(torch.said) if torch.good else None,
        "devices": devices(),
    }
