"""Models x measures within a time: every row by a process of its own, the result on disk after each. One failure costs one row.

A row is `measured`, `failed` (with what was said) or `not run` (the time was over). Nothing is filled in that was not seen.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.gpu.catalogue import ROOT, Catalogue, ModelPlan, build
from bench.gpu.environment import devices, environment
from bench.gpu.measures import MEASURES, WEIGHTS, Job
from bench.gpu.steps import Outcome, run
from bench.native_client import command
from bench.processes import alive, cpu_s, podium
from bench.record import write

ENGINE = "engine"
_ENGINE_PART, _LEAST_S, _START_S = 0.2, 0.3, 180.0
_SLACK, _GRACE_S = 1.5, 30.0
"""A measure plans its time, and gets a half more, and this, before it is ended. For as long after the matrix's time is over
measures are still begun that come late through no fault of theirs, each with the least time there is."""
_CHECKED = 16


def halves(cores: list[int]) -> tuple[list[int], list[int]]:
    """The server's cores and the clients'. One core is both.

    >>> halves([0, 1, 2]), halves([4])
    (([0, 1], [2]), ([4], [4]))
    """
    middle = (len(cores) + 1) // 2
    return cores[:middle], cores[middle:] or cores


class Matrix:
    """One run of a catalogue. `end_s`: on the monotonic clock, when nothing further is begun."""

    def __init__(self, name: str, chosen: Catalogue, minutes: float, results: Path, folder: Path, plane: str) -> None:
        self._name = name
        self._catalogue = chosen
        self._results = results
        self._folder = folder
        self._plane = plane
        self._end_s = time.monotonic() + minutes * 60
        self._server_cores, self._client_cores = halves(sorted(os.sched_getaffinity(0)))
        self._facts = {"assumed": chosen.assumed, "minutes": minutes, "environment": environment()}
        self._rows: list[dict[str, Any]] = []
        self._beside_s = 1.0

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What there is so far."""
        return self._rows

    def measure(self) -> Path:
        """Every model in turn, each with its part of the time that is left. Where the result lies."""
        self._save()
        plans = self._catalogue.model
        for place, plan in enumerate(plans):
            share_s = self._left_s() / (len(plans) - place)
            self._model(plan, time.monotonic() + share_s)
        self._facts["devices_after"] = devices()
        return self._save()

    def _left_s(self) -> float:
        return max(0.0, self._end_s - time.monotonic())

    def _save(self) -> Path:
        return write(self._name, self._facts | {"rows": self._rows}, self._results)

    def _add(self, plan: ModelPlan, measure: str, status: str, **said: Any) -> None:
        self._rows.append({"model": plan.name, "measure": measure, "status": status, **said})
        self._save()
        value = said.get("value", said.get("rate", said.get("text", "")))
        sys.stderr.write(f"{plan.name} {measure}: {status} {str(value).splitlines()[0] if str(value) else ''}\n")

    def _model(self, plan: ModelPlan, until_s: float) -> None:
        repository = self._folder / plan.name
        try:
            build(plan, repository, max(1.0, self._left_s()))
        except Exception as error:  # noqa: BLE001 - whatever a recipe does, it costs its model's rows and no more
            for measure in (ENGINE, *MEASURES):
                self._add(plan, measure, "failed", text=f"build: {error}")
            return
        engine = self._engine(plan, repository, until_s)
        if engine is None:
            for measure in MEASURES:
                self._add(plan, measure, "failed", text="without the engine's rate there is nothing to divide by")
            return
        waiting, refused = list(MEASURES), 0
        while waiting:
            if time.monotonic() > self._end_s + _GRACE_S:
                self._add(plan, waiting.pop(0), "not run", text="the time was over")
                continue
            try:
                with self._server(plan, repository, until_s) as (address, process):
                    refused = 0
                    while waiting and alive(process):
                        before_s = cpu_s(process)
                        row = self._one(plan, waiting.pop(0), address, engine, until_s, len(waiting))
                        if alive(process) and row["status"] == "measured":
                            row["server_cpu_s"] = cpu_s(process) - before_s
                            self._save()
            except Exception as error:  # noqa: BLE001 - a server that does not start costs one row, and is tried for the next
                refused += 1
                # twice in a row: it would only cost time that other models can use
                for measure in waiting[:1] if refused == 1 else tuple(waiting):
                    waiting.remove(measure)
                    self._add(plan, measure, "failed", text=f"server: {error}"[-4000:])

    @contextmanager
    def _server(self, plan: ModelPlan, repository: Path, until_s: float) -> Iterator[tuple[str, Any]]:
        config = self._folder / "server.toml"
        config.write_text(f"io_threads = {max(1, min(4, len(self._server_cores) // 2))}\n")
        flags = ["--config", str(config), "--data-plane", self._plane, "--control-mode", "explicit", "--load-model", plan.name]
        start_s = min(_START_S, max(_GRACE_S, until_s - time.monotonic()))
        with podium(repository, self._folder, *flags, cores=self._server_cores, start_s=start_s) as (address, _, process):
            bodies = self._folder / plan.name / "bodies"
            words = command(address, plan.name, "--bodies", bodies, "--tolerance", plan.tolerance, "--requests", _CHECKED)
            checked = run(words, start_s, ROOT, cores=self._client_cores)
            if not checked.good or json.loads(checked.said)["right"] != _CHECKED:
                log = (self._folder / "podium.log").read_text("utf-8", "replace")
                raise RuntimeError(f"it does not answer rightly: {checked.said}{checked.text}{log}")
            yield address, process

    def _engine(self, plan: ModelPlan, repository: Path, until_s: float) -> dict[str, Any] | None:
        seconds = max(_LEAST_S, (until_s - time.monotonic()) * _ENGINE_PART)
        words = [
            "--repository",
            repository,
            "--model",
            plan.name,
            "--seconds",
            seconds,
            "--bodies",
            self._folder / plan.name / "bodies",
            "--on",
            self._catalogue.on,
        ]
        started = [sys.executable, "-m", "bench.gpu.engine", *map(str, words)]
        done = run(started, min(self._left_s() + _GRACE_S, seconds * _SLACK + _START_S), ROOT, cores=self._server_cores)
        return self._told(plan, ENGINE, done)

    def _one(
        self, plan: ModelPlan, measure: str, address: str, engine: dict[str, Any], until_s: float, rest: int
    ) -> dict[str, Any]:
        if time.monotonic() > self._end_s + _GRACE_S:
            self._add(plan, measure, "not run", text="the time was over")
            return self._rows[-1]
        # what a measure takes beside its own time is learnt from the last one
        left_s = until_s - time.monotonic() - self._beside_s * (1 + rest)
        later = sum(WEIGHTS[name] for name in list(MEASURES)[-rest:]) if rest else 0.0
        seconds = max(_LEAST_S, left_s * WEIGHTS[measure] / (WEIGHTS[measure] + later))
        job = Job(
            measure=measure,
            plan=plan,
            address=address,
            bodies=self._folder / plan.name / "bodies",
            engine=engine,
            seconds=seconds,
            client_cores=tuple(self._client_cores),
        )
        file = self._folder / "job.json"
        file.write_text(job.model_dump_json())
        done = run([sys.executable, "-m", "bench.gpu.measures", "--job", str(file)], seconds * _SLACK + _GRACE_S, ROOT)
        self._beside_s = max(0.0, done.took_s - seconds)
        self._told(plan, measure, done)
        return self._rows[-1]

    def _told(self, plan: ModelPlan, measure: str, done: Outcome) -> dict[str, Any] | None:
        try:
            said: dict[str, Any] | None = json.loads(done.said) if done.good else None
        except ValueError:
            said = None
        if said is None:
            self._add(plan, measure, "failed", text=done.why, took_s=done.took_s)
        else:
            self._add(plan, measure, "measured", took_s=done.took_s, assumed=self._catalogue.assumed, **said)
        return said
