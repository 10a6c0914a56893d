"""`make demo`: trains both variants of the flight delay model, fills a store of features, serves the one that reads it from
keys alone, replays July 2013 as it happened, and proves what was served.

Every step is what a user would do: the recipe, `podium features materialize`, `podium serve`, pushed events, `tritonclient`,
`podium features audit`. Exit status 0 only if every flight was answered by the champion, with the answers that its file gives
for the features of the training path, the server left in order, and the audit found not one byte that differs.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from tqdm import tqdm
from tritonclient.utils import InferenceServerException

from feature_client.errors import FeatureError
from models.flight_delay import client, replay
from models.flight_delay.build import SCHEDULE_ALIAS, ensure_registered
from models.flight_delay.events import load_events
from models.flight_delay.examples import as_rows
from models.flight_delay.export import predict
from models.flight_delay.facts import ROOT
from models.flight_delay.filling import (
    DEFINITIONS,
    PROJECT,
    FillingFailed,
    Happening,
    audit,
    materialize,
    store_url,
    write_logs,
)
from models.flight_delay.history import History, load_history
from models.flight_delay.inputs import Variant
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
    except (PodiumError, FeatureError, ServerFailed, FillingFailed, OSError) as error:
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
    expected. Raises: PodiumError, ServerFailed, FillingFailed, OSError; KeyboardInterrupt with the server stopped.
    """
    champion, parents = _models(repository, settings, limit_rows)
    july = _july(flights)
    file = repository / MODEL / str(champion.version) / MODEL_FILE
    reference = predict(file.read_bytes(), _by_instant(july.history))[client.OUTPUT][:, 0].astype(np.float64)
    with store_url() as (url, which), tempfile.TemporaryDirectory(prefix="podium-demo-") as folder:
        samples = Path(folder) / "served.jsonl"
        paths = _fill(july, url, which, Path(folder))
        config = _server_settings(Path(folder), url, samples)
        with ServerProcess(repository, MODEL, config) as server:
            print(f"[4/6] server   ready in {server.ready_s:.1f} s on {server.grpc_address}")
            print(f"               while it runs: {server.metrics_url}", flush=True)
            outcome, counted, page, computed_s = _replay(server, july, url, concurrency)
        late = np.concatenate([request.late for request in july.requests])
        whole = limit_rows is None and flights is None and settings == Settings()
        judged = Judged(outcome, counted, page, computed_s, late, reference, champion, whole)
        print(f"[5/6] replay   done; the server left with status {server.exit_status}")
        print("[6/6] audit    computing what was served again, by the training path ...", flush=True)
        audited = audit(samples, paths, repository)
    print(f"\nFlights of July 2013, one request each\n{render(judged, concurrency)}")
    # its table has a line for each feature; the last two lines say it all where nothing differs
    print(f"\nWhat was served, against the training path\n{indented(audited.splitlines()[-2:], 2)}")
    print(f"\nWhich model answered\n{origin(champion, DEFAULT_ALIAS, parents)}")
    print(f"\nWhere to look next\n{_next(repository)}\n", flush=True)
    found = problems(judged)
    if server.exit_status != 0:
        found.append(f"the server left with status {server.exit_status}")
    return found


def _models(repository: Path, settings: Settings, limit_rows: int | None) -> tuple[Manifest, tuple[int, ...]]:
    """The champion and its ancestors; both variants are there afterwards, trained where there is none that is the same."""
    print("[1/6] models   looking for them, else training ...", flush=True)
    by_timetable, _ = _model(repository, settings, limit_rows, "schedule", SCHEDULE_ALIAS)
    champion, parents = _model(repository, settings, limit_rows, "history", DEFAULT_ALIAS)
    before, after = (each.metrics["june_auc"] for each in (by_timetable, champion))
    print(f"               AUC in June: {before:.4f} by the timetable,")
    print(f"               {after:.4f} by what happened lately ({after - before:+.4f})", flush=True)
    return champion, parents


def _model(
    repository: Path, settings: Settings, limit_rows: int | None, variant: Variant, alias: str
) -> tuple[Manifest, tuple[int, ...]]:
    began = time.monotonic()
    registered = ensure_registered(repository, settings, limit_rows=limit_rows, reuse=True, variant=variant, alias=alias)
    taken_s = time.monotonic() - began
    verb = "is used again:" if registered.built is None else f"trained in {taken_s:.1f} s:"
    print(f"               {registered.key} @{alias} ({variant}) {verb}\n               {registered.reason}", flush=True)
    model = LocalDirectory(repository, settle_s=0.0).scan()[MODEL]
    manifests = {number: version.manifest for number, version in model.versions.items()}
    manifest = manifests[registered.key.version]
    if manifest is None:
        raise FileNotFoundError(f"{registered.key} lost its manifest")
    return manifest, tuple(each.version for each in ancestors(registered.key.version, manifests))


@dataclass(frozen=True)
class July:
    """The flights to replay, as a client sends them, and the logs of the whole year. Shapes: `instants_us` `[requests]`."""

    history: History
    requests: list[Replayed]
    encoded: list[client.Encoded]
    instants_us: list[int]
    logs: Mapping[str, Mapping[str, Array]]


def _july(limit: int | None) -> July:
    began = time.monotonic()
    print("[2/6] flights  loading the year, encoding July ...", flush=True)
    history = load_history()
    july = history.take(history.flights.month == MONTH)
    first = july.take(np.argsort(july.scheduled_us, kind="stable")[:limit])
    requests = replay.by_keys(first)
    encoded = client.encode(requests)
    print(f"               {len(encoded):,} requests encoded in {time.monotonic() - began:.1f} s")
    return July(first, requests, encoded, sorted(first.scheduled_us.tolist()), load_events())


def _fill(july: July, url: str, which: str, folder: Path) -> dict[str, Path]:
    print(f"[3/6] store    filling {which} with what was known on July 1 ...", flush=True)
    paths = write_logs(july.logs, folder)
    filled = materialize(url, paths, july.instants_us[0])
    print(indented([line.partition(", store ")[0] for line in filled.splitlines()]), flush=True)
    return paths


def _server_settings(folder: Path, url: str, samples: Path) -> Path:
    """What an operator tells a server about features, in the file that `--config` names."""
    lines = {
        "definitions": [str(DEFINITIONS)],
        "store": url,
        "project": PROJECT,
        "audit_file": str(samples),
        "audit_of_rows": 1.0,
        # what is judged are bits, on machines that may be busy with something else: a late answer must not become a default
        "budget_us": 5_000_000,
    }
    file = folder / "server.toml"
    file.write_text("[features]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items()), "utf-8")
    return file


def _replay(server: ServerProcess, july: July, url: str, concurrency: int) -> tuple[client.Outcome, client.Counted, str, float]:
    """What came back, the server's own account, its metrics page, and the seconds it computed. Raises: ServerFailed."""
    happening = Happening(url, july.logs, july.instants_us[0])
    try:
        before = cpu_seconds(server.metrics())
        with _progress(len(july.encoded)) as bar:
            outcome, counted = client.replay_in_time(
                server.grpc_address,
                MODEL,
                july.encoded,
                july.instants_us,
                happening.until,
                concurrency=concurrency,
                progress=bar.update,
            )
        page = server.metrics()
        return outcome, counted, page, cpu_seconds(page) - before
    except (InferenceServerException, OSError) as error:
        raise ServerFailed(f"the server stopped answering: {error}\n{server.log_tail()}") from error
    finally:
        happening.close()


def _by_instant(history: History) -> dict[str, Array]:
    """What the training path gives the network, in the order of the requests. Shapes: `[requests, 1]` per input."""
    return as_rows(history.take(np.argsort(history.scheduled_us, kind="stable")).flights.inputs)


def indented(lines: Sequence[str], columns: int = 15) -> str:
    """What a command said, below a line of our own."""
    return "\n".join(" " * columns + line for line in lines)


def _progress(total: int) -> "tqdm[NoReturn]":
    """A bar of one line on a terminal; in a log, a few lines' worth at most."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc="[5/6] replay",
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
