"""What a replay showed, as text of at most 80 columns, and what is wrong with it. **Pure.**

Numbers state whose they are: the client's include its own cost, the server's come from its metrics and statistics.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from models.flight_delay.client import Batches, Outcome
from models.flight_delay.metrics import Labels, auc
from models.flight_delay.registration import GOLDEN_ATOL, GOLDEN_RTOL, MODEL_FILE
from server.core.clock import NS_PER_S
from server.registry.manifest import Manifest
from server.telemetry.histogram import LATENCY_EDGES_NS, Histogram

AUC_TOLERANCE = 1e-6
JULY_AUC, JULY_AUC_TOLERANCE = 0.720, 0.005
"""What README.md measured, and how far training on another kind of CPU may come out from it."""

_BINS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_BAR_WIDTH = 40
_RATIOS = (0.50, 0.95, 0.99)


@dataclass(frozen=True)
class Judged:
    """A replay beside what the model file itself answers without any server.

    `whole`: the shipped recipe on the whole month, so that README.md's AUC applies. Shapes: `late`, `reference` `[requests]`.
    Units: `server_cpu_s` seconds the server computed during the replay.
    """

    outcome: Outcome
    batches: Batches
    metrics_page: str
    server_cpu_s: float
    late: Labels
    reference: NDArray[np.float64]
    champion: Manifest
    whole: bool

    @property
    def auc(self) -> float:
        """Of the answers that came back; NaN where one is missing."""
        return float("nan") if self.outcome.failed else auc(self.late, self.outcome.probability)

    @property
    def reference_auc(self) -> float:
        """Of the file's own answers."""
        return auc(self.late, self.reference)


def problems(judged: Judged) -> list[str]:
    """Everything that is not as it should be; empty for a good replay."""
    outcome, champion = judged.outcome, judged.champion
    requests = len(outcome.probability)
    found = []
    if outcome.failed:
        found.append(f"{outcome.failed} of {requests} requests failed: {'; '.join(outcome.errors) or 'NaN was answered'}")
    if outcome.versions != {str(champion.version)}:
        found.append(f"version {', '.join(sorted(outcome.versions)) or 'none'} answered, the champion is {champion.version}")
    # "not <=" because NaN must not pass
    if not abs(judged.auc - judged.reference_auc) <= AUC_TOLERANCE:
        found.append(f"AUC is {judged.auc:.6f}, by the file alone it is {judged.reference_auc:.6f}")
    if not np.allclose(outcome.probability, judged.reference, rtol=GOLDEN_RTOL, atol=GOLDEN_ATOL):
        found.append(f"answers are up to {_distance(judged):.1e} away from the file's own")
    if judged.whole and not abs(judged.auc - JULY_AUC) <= JULY_AUC_TOLERANCE:
        found.append(f"AUC is {judged.auc:.4f}, README.md says {JULY_AUC:.3f}")
    if judged.batches.rows != requests:
        found.append(f"the server counted {judged.batches.rows} rows, {requests} were sent")
    return found


def render(judged: Judged, concurrency: int) -> str:
    """The report on the replay."""
    outcome, batches = judged.outcome, judged.batches
    requests, executions = len(outcome.probability), sum(batches.executions.values())
    client = np.quantile(outcome.latency_s, _RATIOS).tolist()
    total = latency_histogram(judged.metrics_page, judged.champion.model, "total")
    server = [(total.quantile(ratio) or 0.0) / NS_PER_S for ratio in _RATIOS]
    busy = [outcome.cpu_s, judged.server_cpu_s]
    mean, largest = batches.rows / max(executions, 1), max(batches.executions, default=0)
    lines = [
        ("requests/s", f"{requests / outcome.wall_s:,.0f}   ({requests:,} in {outcome.wall_s:.1f} s, {concurrency} at a time)"),
        ("latency, client", f"{_latencies(client)}   as a caller sees it"),
        ("latency, server", f"{_latencies(server)}   arrival to answer"),
        ("CPU", "   ".join(f"{who} {cpu / outcome.wall_s:.0%}" for who, cpu in zip(("client", "server"), busy, strict=True))),
        ("failed requests", f"{outcome.failed}"),
        ("AUC", f"{judged.auc:.6f}   by the file alone {judged.reference_auc:.6f}" + _readme(judged)),
        ("answers", f"at most {_distance(judged):.1e} away from the file's own"),
        ("batches", f"{executions:,}, mean {mean:.1f} rows, largest {largest}; how many had:"),
    ]
    return "\n".join([*_labelled(lines), *distribution(batches.executions)])


def origin(manifest: Manifest, alias: str, parents: tuple[int, ...]) -> str:
    """Which model answered and where it came from, in short; `podium lineage` says the rest."""
    code, data, recipe = manifest.code, manifest.data, manifest.recipe
    dirty = " + uncommitted changes" if code is not None and code.dirty else ""
    lines = [
        ("model", f"{manifest.model}:{manifest.version} @{alias}"),
        (MODEL_FILE, f"sha256 {manifest.files[MODEL_FILE].sha256[:16]}, {manifest.files[MODEL_FILE].bytes:,} bytes"),
        ("created", manifest.created_at.isoformat(timespec="seconds")),
        ("code", "no commit recorded" if code is None else f"commit {code.commit[:12]}{dirty}"),
        ("data", "not recorded" if data is None else f"{data.source}, {data.rows:,} rows"),
        ("", "" if data is None else f"{(data.digest or 'no digest')[:23]}"),
        (
            "recipe",
            "not recorded" if recipe is None else " ".join((recipe.command.removeprefix("python -m "), *recipe.arguments)),
        ),
        ("parents", " <- ".join(map(str, parents)) or "none"),
    ]
    return "\n".join(_labelled(lines))


def distribution(executions: Mapping[int, int]) -> list[str]:
    """Share of the batches by their rows, in bins that double; empty bins at either end are left out."""
    total = sum(executions.values())
    counts = [0] * (len(_BINS) + 1)
    for rows, count in executions.items():
        counts[int(np.searchsorted(_BINS, rows))] += count
    filled = [index for index, count in enumerate(counts) if count]
    lines: list[str] = []
    for index in range(filled[0], filled[-1] + 1) if filled else ():
        share = counts[index] / total
        lines.append(f"  {_bin_name(index):>15}  {share:>5.1%}  {'#' * round(share * _BAR_WIDTH)}".rstrip())
    return lines


def cpu_seconds(metrics_page: str) -> float:
    """What the server has computed since its start."""
    families = text_string_to_metric_families(metrics_page)
    return sum(sample.value for family in families for sample in family.samples if sample.name == "process_cpu_seconds_total")


def latency_histogram(metrics_page: str, model: str, phase: str) -> Histogram:
    """The server's own histogram of one phase, over all versions of the model. Units: nanoseconds."""
    histogram = Histogram(LATENCY_EDGES_NS)
    cumulative = np.zeros(len(LATENCY_EDGES_NS) + 1, np.int64)
    edges = {edge: index for index, edge in enumerate(LATENCY_EDGES_NS)}
    for family in text_string_to_metric_families(metrics_page):
        for sample in family.samples:
            wanted = sample.labels.get("model") == model and sample.labels.get("phase") == phase
            if not wanted or sample.name != "podium_request_seconds_bucket":
                continue
            limit = sample.labels["le"]
            index = len(LATENCY_EDGES_NS) if limit == "+Inf" else edges[round(float(limit) * NS_PER_S)]
            cumulative[index] += int(sample.value)
    histogram.counts = np.diff(cumulative, prepend=0)
    histogram.count = int(cumulative[-1])
    return histogram


def _latencies(values_s: list[float]) -> str:
    return "   ".join(f"p{ratio * 100:.0f} {value * 1e3:.1f} ms" for ratio, value in zip(_RATIOS, values_s, strict=True))


def _readme(judged: Judged) -> str:
    return f"   (README {JULY_AUC:.3f})" if judged.whole else ""


def _distance(judged: Judged) -> float:
    return float(np.abs(judged.outcome.probability - judged.reference).max())


def _bin_name(index: int) -> str:
    if index == len(_BINS):
        return f"over {_BINS[-1]} rows"
    low = _BINS[index - 1] + 1 if index else 1
    return f"{low} row{'s'[: low > 1]}" if low == _BINS[index] else f"{low}-{_BINS[index]} rows"


def _labelled(lines: list[tuple[str, str]]) -> list[str]:
    return [f"  {label:<15}  {value}" for label, value in lines if label or value]
