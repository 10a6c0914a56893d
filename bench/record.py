"""Where, when and with what a result was measured; written atomically to bench/results/."""

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What a reader needs in order to compare."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?"
    )
    packages = ("grpcio", "numpy", "onnxruntime", "protobuf")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def write(name: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write `result` as NAME.json of a folder; a reader sees the old file or the new one."""
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"name": name, "measured_at": datetime.now(UTC).isoformat(timespec="seconds"), **result}
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)
    return path
