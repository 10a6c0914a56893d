"""`python -m bench.drift.peers MODULE`: play cases, read from standard input as JSON, to one peer; a line of JSON for each.

Run by the peer's own interpreter, whose environment has the library and not this project's packages.
"""

import json
import sys
import time
import traceback
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import version
from typing import Any

from bench.drift.playing import outlier, play


def main(module: str) -> int:
    """What a case ends with is a line too: a peer that cannot do one of them may do the next."""
    lines, sys.stdout = sys.stdout, sys.stderr
    peer = import_module(f"bench.drift.peers.{module}")
    print(json.dumps({"version": version(peer.DISTRIBUTION)}), file=lines, flush=True)
    for case in json.load(sys.stdin):
        began = time.perf_counter()
        try:
            answer: dict[str, Any] = (
                asdict(play(peer.Detector(), case)) if case["what"] == "play" else outlier(peer.Detector(), case)
            )
        except Exception as error:  # noqa: BLE001  whatever a library raises is its result for this case
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        print(json.dumps(answer | {"seconds": time.perf_counter() - began}), file=lines, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
