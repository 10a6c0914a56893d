"""Playing cases to the peers that are installed: each in a process of its own interpreter, which makes the same rows itself."""

import json
import os
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

from bench.drift.install import ROOT, Peer, missing

_QUIET = {
    # libraries that report their use to their makers: a benchmark is no user
    "DO_NOT_TRACK": "1",
    "NML_DISABLE_USAGE_LOGGING": "1",
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}


def ask(peer: Peer, cases: Sequence[dict[str, Any]], limit_s: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a peer is, and its answers, as many as there are cases; one that there is none of has an `error` instead.

    `limit_s`: of all cases together; what is not answered by then is not waited for.
    """
    reason = missing(peer)
    if reason:
        return {"name": peer.name, "installed": False, "reason": reason}, [{"error": reason}] * len(cases)
    command = [str(peer.python), "-W", "ignore", "-m", "bench.drift.peers", peer.module]
    environment = os.environ | _QUIET | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(limit_s, stop)
    timer.start()
    try:
        out, err = process.communicate(json.dumps(list(cases)))
    finally:
        timer.cancel()
    lines = [json.loads(line) for line in out.splitlines()]
    tail = err.strip().splitlines()[-1][:300] if err.strip() else "nothing was said"
    ended = f"not run: {limit_s:.0f} s were over" if late.is_set() else f"exit status {process.returncode}: {tail}"
    if not lines:
        return {"name": peer.name, "installed": False, "reason": ended}, [{"error": ended}] * len(cases)
    answers = lines[1:] + [{"error": ended}] * (len(cases) - len(lines) + 1)
    return {"name": peer.name, "installed": True, "version": lines[0]["version"]}, answers
