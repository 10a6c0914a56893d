"""`python -m bench.drift.install`: an environment for each peer below build/, with the versions that its list of pins says.

What cannot be installed is written down with the reason, and the benchmark reports it so.
"""

import json
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / "build" / "drift-peers"
PINS = Path(__file__).parent / "peers"
_MINUTES = 20


@dataclass(frozen=True, slots=True)
class Peer:
    """A library. `module`: what plays for it, of `bench.drift.peers`."""

    name: str
    distribution: str
    module: str

    @property
    def python(self) -> Path:
        """Its interpreter, whether it is there or not."""
        return ENVIRONMENTS / self.distribution / "bin" / "python"

    @property
    def failure(self) -> Path:
        """Where the reason is when it could not be installed."""
        return ENVIRONMENTS / f"{self.distribution}.failed"


PEERS = (
    Peer("Evidently", "evidently", "evidently_peer"),
    Peer("NannyML", "nannyml", "nannyml_peer"),
    Peer("alibi-detect", "alibi-detect", "alibi_peer"),
)


def missing(peer: Peer) -> str:
    """Why a peer cannot be run; "" where it can."""
    if peer.failure.exists():
        return peer.failure.read_text("utf-8")
    return "" if peer.python.exists() else "not installed: python -m bench.drift.install"


def install(peer: Peer) -> str:
    """Make its environment anew. Return why that failed, or ""."""
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    peer.failure.unlink(missing_ok=True)
    venv.create(peer.python.parents[1], clear=True, with_pip=True)
    pins = PINS / f"{peer.distribution}.txt"
    # the pins are a whole environment; NannyML 0.13.1 needs statsmodels and does not say so, Evidently needs pandas below 3
    command = [str(peer.python), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(pins)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MINUTES * 60, check=False)
        failure = "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "pip failed"
    except subprocess.TimeoutExpired:
        failure = f"pip took more than {_MINUTES} minutes"
    if failure:
        peer.failure.write_text(failure, "utf-8")
    return failure


def main() -> int:
    """The exit status is 1 if any could not be installed."""
    failures = {peer.name: install(peer) for peer in PEERS}
    print(json.dumps({name: failure or "installed" for name, failure in failures.items()}, indent=2))
    return int(any(failures.values()))


if __name__ == "__main__":
    sys.exit(main())
