"""What a replay showed, as text of at most 80 columns, and what is wrong with it. Reads and writes nothing.

Numbers state whose they are: the client's include its own cost, the server's come from its metrics and statistics.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from models.flight_delay.client import Counted, Outcome
from models.flight_delay.metrics import Labels, auc
from models.flight_delay.registration import GOLDEN_ATOL, GOLDEN_RTOL, MODEL_FILE
from server.core.clock import NS_PER_S
from server.registry.manifest import Manifest
from server.telemetry.histogram import LATENCY_EDGES_NS, ROWS_EDGES, Histogram

AUC_TOLERANCE = 1e-6
JULY_AUC, JULY_AUC_TOLERANCE = 0.787, 0.005
"""What README.md measured, and how far training on another kind of CPU may come out from it."""

_BAR_WIDTH = 40
_RATIOS = (0.50, 0.95, 0.99)


@dataclass(frozen=True)
class Judged:
    """A replay beside what the model file itself answers without any server.

    `whole`: the shipped recipe on the whole month, so that README.md's AUC applies. Shapes: `late`, `reference` `[requests]`.
    Units: `server_cpu_s` seconds the server computed during the replay.
    """

    outcome: Outcome
    counted: Counted
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
    if judged.counted.rows != requests:
        found.append(f"the server counted {judged.counted.rows} rows, {requests} were sent")
    return found


def render(judged: Judged, concurrency: int) -> str:
    """The report on the replay."""
    outcome, counted, page = judged.outcome, judged.counted, judged.metrics_page
    requests = len(outcome.probability)
    client = np.quantile(outcome.latency_s, _RATIOS).tolist()
    total = latency_histogram(page, judged.champion.model)
    server = [(total.quantile(ratio) or 0.0) / NS_PER_S for ratio in _RATIOS]
    busy = [outcome.cpu_s, judged.server_cpu_s]
    mean_rows = counted.rows / max(counted.executions, 1)
    lines = [
        ("requests/s", f"{requests / outcome.wall_s:,.0f}   ({requests:,} in {outcome.wall_s:.1f} s, {concurrency} at a time)"),
        ("latency, client", f"{_latencies(client)}   at the caller"),
        ("latency, server", f"{_latencies(server)}   arrival to answer"),
        ("CPU", "   ".join(f"{who} {cpu / outcome.wall_s:.0%}" for who, cpu in zip(("client", "server"), busy, strict=True))),
        ("failed requests", f"{outcome.failed}"),
        ("AUC", f"{judged.auc:.6f}   by the file alone {judged.reference_auc:.6f}" + _readme(judged)),
        ("answers", f"at most {_distance(judged):.1e} away from the file's own"),
        ("batches", f"{counted.executions:,}, mean {mean_rows:.1f} rows; how many had:"),
    ]
    return "\n".join([*_labelled(lines), *distribution(rows_histogram(page, judged.champion.model))])


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
        ("recipe", "not recorded" if recipe is None else recipe.command),
        ("", "" if recipe is None else " ".join(recipe.arguments)),
        ("parents", " <- ".join(map(str, parents)) or "none"),
    ]
    return "\n".join(_labelled(lines))


def distribution(rows: Histogram) -> list[str]:
    """Share of the batches by their rows, a line per bin; empty bins at either end are left out."""
    filled = np.flatnonzero(rows.counts).tolist()
    lines: list[str] = []
    for index in range(filled[0], filled[-1] + 1) if filled else ():
        share = rows.counts[index] / rows.count
        lines.append(f"  {_bin_name(rows.edges, index):>15}  {share:>5.1%}  {'#' * round(share * _BAR_WIDTH)}".rstrip())
    return lines


def cpu_seconds(metrics_page: str) -> float:
    """What the server has computed since its start."""
    families = text_string_to_metric_families(metrics_page)
    return sum(sample.value for family in families for sample in family.samples if sample.name == "process_cpu_seconds_total")


def latency_histogram(metrics_page: str, model: str) -> Histogram:
    """The server's time per answered request, over all versions of the model. Units: nanoseconds."""
    labels = {"model": model, "phase": "total"}
    return _histogram(metrics_page, "podium_request_seconds", labels, LATENCY_EDGES_NS, NS_PER_S)


def rows_histogram(metrics_page: str, model: str) -> Histogram:
    """Rows per executed batch, without padding, over all versions of the model."""
    return _histogram(metrics_page, "podium_batch_rows", {"model": model}, ROWS_EDGES, 1)


def _histogram(page: str, name: str, labels: Mapping[str, str], edges: tuple[int, ...], unit: int) -> Histogram:
    """Back from the page's cumulative counts to the histogram they were rendered from (all but its sum)."""
    places = {edge: index for index, edge in enumerate(edges)}
    cumulative = np.zeros(len(edges) + 1, np.int64)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == f"{name}_bucket" and labels.items() <= sample.labels.items():
                limit = sample.labels["le"]
                place = len(edges) if limit == "+Inf" else places[round(float(limit) * unit)]
                cumulative[place] += int(sample.value)
    histogram = Histogram(edges)
    histogram.counts = np.diff(cumulative, prepend=0)
    histogram.count = int(cumulative[-1])
    return histogram


def _latencies(values_s: list[float]) -> str:
    return "   ".join(f"p{ratio * 100:.0f} {value * 1e3:.1f} ms" for ratio, value in zip(_RATIOS, values_s, strict=True))


def _readme(judged: Judged) -> str:
    return f"   (README {JULY_AUC:.3f})" if judged.whole else ""


def _distance(judged: Judged) -> float:
    return float(np.abs(judged.outcome.probability - judged.reference).max())


def _bin_name(edges: tuple[int, ...], index: int) -> str:
    if index == len(edges):
        return f"over {edges[-1]} rows"
    low = edges[index - 1] + 1 if index else 1
    if low < edges[index]:
        return f"{low}-{edges[index]} rows"
    return "1 row" if low == 1 else f"{low} rows"


def _labelled(lines: list[tuple[str, str]]) -> list[str]:
    return [f"  {label:<15}  {value}" for label, value in lines if label or value]
