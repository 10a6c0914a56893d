"""`make demo`: trains and registers the flight delay model, serves it, replays July 2013 against it, and judges the answers.

Every step is what a user would do: the recipe, `podium serve`, `tritonclient`. Exit status 0 only if every flight was
answered by the champion, with the answers that its file gives without a server, and the server left in order.
"""

import argparse
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import numpy as np
from tqdm import tqdm
from tritonclient.utils import InferenceServerException

from models.flight_delay import client, replay
from models.flight_delay.build import ensure_registered
from models.flight_delay.export import predict
from models.flight_delay.facts import ROOT
from models.flight_delay.registration import MODEL, MODEL_FILE
from models.flight_delay.replay import Replayed
from models.flight_delay.report import Judged, cpu_seconds, origin, problems, render
from models.flight_delay.server_process import ServerFailed, ServerProcess
from models.flight_delay.training import Settings
from server.core.errors import PodiumError
from server.core.tensors import Array
from server.registry.lineage import ancestors
from server.registry.manifest import Manifest
from server.registry.resolve import DEFAULT_ALIAS
from server.registry.source import LocalDirectory

MONTH = 7
INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str]) -> int:
    """Run the demo. The exit status: 0 all well, 1 something was wrong, 130 interrupted."""
    given = _parse(arguments)
    began = time.monotonic()
    try:
        with _interruptible():
            found = run(given.repository, Settings(epochs=given.epochs), given.limit_rows, given.flights, given.concurrency)
    except KeyboardInterrupt:
        print("\ninterrupted; the server is stopped", flush=True)
        return INTERRUPTED
    except (PodiumError, ServerFailed, OSError) as error:
        print(f"\nFAILED: {error}", flush=True)
        return 1
    for problem in found:
        print(f"WRONG: {problem}")
    if not found:
        print(f"All checks passed in {time.monotonic() - began:.0f} s.")
    return 1 if found else 0


def run(repository: Path, settings: Settings, limit_rows: int | None, flights: int | None, concurrency: int) -> list[str]:
    """All stages, printed as they go; what was wrong, or an empty list.

    `limit_rows` trains on fewer rows and `flights` replays only the first of July: quick, and then README.md's AUC is not
    expected. Raises: PodiumError, ServerFailed, OSError; KeyboardInterrupt with the server stopped.
    """
    champion, parents = _model(repository, settings, limit_rows)
    requests, encoded = _flights(flights)
    file = repository / MODEL / str(champion.version) / MODEL_FILE
    reference = predict(file.read_bytes(), _joined(requests))[client.OUTPUT][:, 0].astype(np.float64)
    with ServerProcess(repository, MODEL) as server:
        print(f"[3/4] server   ready in {server.ready_s:.1f} s on {server.grpc_address}")
        print(f"               while it runs: {server.metrics_url}", flush=True)
        try:
            before = cpu_seconds(server.metrics())
            with _progress(len(encoded)) as bar:
                outcome, counted = client.replay(
                    server.grpc_address, MODEL, encoded, concurrency=concurrency, progress=bar.update
                )
            page = server.metrics()
        except (InferenceServerException, OSError) as error:
            raise ServerFailed(f"the server stopped answering: {error}\n{server.log_tail()}") from error
    late = np.concatenate([request.late for request in requests])
    whole = limit_rows is None and flights is None and settings == Settings()
    judged = Judged(outcome, counted, page, cpu_seconds(page) - before, late, reference, champion, whole)
    print(f"[4/4] replay   done; the server left with status {server.exit_status}")
    print(f"\nFlights of July 2013, one request each\n{render(judged, concurrency)}")
    print(f"\nWhich model answered\n{origin(champion, DEFAULT_ALIAS, parents)}")
    print(f"\nWhere to look next\n{_next(repository)}\n", flush=True)
    found = problems(judged)
    if server.exit_status != 0:
        found.append(f"the server left with status {server.exit_status}")
    return found


def _model(repository: Path, settings: Settings, limit_rows: int | None) -> tuple[Manifest, tuple[int, ...]]:
    """The champion, trained where there is none that is the same, and its ancestors."""
    began = time.monotonic()
    print("[1/4] model    looking for a champion, else training one ...", flush=True)
    registered = ensure_registered(repository, settings, limit_rows=limit_rows, reuse=True)
    taken_s = time.monotonic() - began
    if registered.built is None:
        print(f"               {registered.key} is used again:\n               {registered.reason}")
    else:
        print(f"               {registered.reason}\n               {registered.key} trained and registered in {taken_s:.1f} s")
    model = LocalDirectory(repository, settle_s=0.0).scan()[MODEL]
    manifests = {number: version.manifest for number, version in model.versions.items()}
    champion = manifests[registered.key.version]
    if champion is None:
        raise FileNotFoundError(f"{registered.key} lost its manifest")
    return champion, tuple(each.version for each in ancestors(registered.key.version, manifests))


def _flights(limit: int | None) -> tuple[list[Replayed], list[client.Encoded]]:
    began = time.monotonic()
    print("[2/4] flights  loading and encoding July ...", flush=True)
    requests = list(itertools.islice(replay.requests(MONTH), limit))
    encoded = client.encode(requests)
    print(f"               {len(encoded):,} requests encoded in {time.monotonic() - began:.1f} s")
    return requests, encoded


def _joined(requests: Sequence[Replayed]) -> dict[str, Array]:
    """All requests as one batch. Shapes: `[requests, 1]` per input."""
    return {name: np.concatenate([request.inputs[name] for request in requests]) for name in requests[0].inputs}


def _progress(total: int) -> "tqdm[NoReturn]":
    """A bar of one line on a terminal; in a log, a few lines' worth at most."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc="[4/4] replay",
        unit=" flights",
        mininterval=0.2 if terminal else 5.0,
        maxinterval=10.0,
        ncols=None if terminal else 79,
        ascii=None if terminal else True,
    )


def _next(repository: Path) -> str:
    """Commands that work as they stand from where the demo was started."""
    podium, shown = _seen_from_here(Path(sys.executable).with_name("podium")), _seen_from_here(repository)
    option = "" if shown == "models" else f" --repository {shown}"
    return "\n".join(
        (
            f"  {podium} lineage {MODEL}@{DEFAULT_ALIAS}{option}",
            f"  {podium} reproduce {MODEL}@{DEFAULT_ALIAS}{option}    the same model once more, bit for bit",
            f"  {podium} serve --repository {shown}",
            "  curl http://127.0.0.1:8002/metrics    while that runs: docs/METRICS.md",
            "  models/flight_delay/README.md         what the model can and cannot do",
        )
    )


def _seen_from_here(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative


@contextmanager
def _interruptible() -> Iterator[None]:
    """A request to end from anywhere is treated as Ctrl-C, so that the server is stopped on the way out."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup: somebody wants the demo to live on
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.flight_delay.demo", description="Train, serve, replay July, judge.")
    parser.add_argument("--repository", type=Path, default=ROOT / "models", help="default: %(default)s")
    parser.add_argument("--concurrency", type=int, default=64, help="requests on their way at once (default: %(default)s)")
    parser.add_argument("--flights", type=int, default=None, help="replay only the first so many of July")
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--limit-rows", type=int, default=None, help="train on that many rows: quick, and a poor model")
    given = parser.parse_args(arguments)
    for name in ("concurrency", "flights"):
        value = getattr(given, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1")
    return given


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
