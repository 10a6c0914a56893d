"""gRPC's client for Node.js, where Node.js is: `python tests/grpc_js.py` has npm put it into `.cache/grpc_js`.

Only for tests: nothing of it is part of Podium, and without Node.js its tests are left out.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".cache" / "grpc_js"
CLIENTS = Path(__file__).parent / "clients"
_FETCH_S = 300


def command() -> tuple[list[str], dict[str, str]] | None:
    """How to start its client, and in which environment; None where it is not there."""
    node = shutil.which("node")
    if node is None or not (HOME / "node_modules" / "@grpc" / "grpc-js").is_dir():
        return None
    return [node, str(CLIENTS / "client.js")], {**os.environ, "NODE_PATH": str(HOME / "node_modules")}


def fetch() -> None:
    """Make `HOME`, whole or not at all. Raises: CalledProcessError, OSError, TimeoutExpired."""
    if command() is not None:
        return
    HOME.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOME.parent) as name:
        made = Path(name) / "made"
        made.mkdir()
        shutil.copy2(CLIENTS / "package.json", made)
        npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"]
        subprocess.run(npm, cwd=made, check=True, capture_output=True, timeout=_FETCH_S)
        made.replace(HOME)


if __name__ == "__main__":
    try:
        fetch()
    except (OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"the client of Node.js cannot be had here, its test is left out: {error}\n")
