"""A baseline as the bytes of `baseline.json`, and back. **Pure.**

Floor 4. The same baseline is always the same bytes, and what is read is believed only as far as it was checked: a document may
have been written by anybody, and counts that do not add up would be verdicts that nobody can explain.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from math import inf, isfinite
from typing import Any

import numpy as np

from server.monitoring.baseline import HOURS, Baseline, ReferenceQuality
from server.monitoring.edges import MAX_ROWS, MAX_SCALE, MAX_UNITS, MIN_SCALE
from server.monitoring.streams import SUM_SCALE, Category, Cells, Counts, Layout, Numeric, Stream

BASELINE_FILE = "baseline.json"
FORMAT = 1
MAX_BYTES = 256 * 2**20
"""Of a document: about 20 bytes for each cell of a thousand streams in every hour of the week."""
_MAX_BINS = 4096
_MAX_OTHERS = 2**20
_KINDS = ("binary", "multiclass", "regression")
_ORIGINS = ("input", "feature", "output")


def to_document(baseline: Baseline) -> bytes:
    """Canonical JSON. `digest` is not part of it: it is of these bytes. Raises: ValueError for more than `MAX_BYTES`."""
    document = {
        "format": FORMAT,
        "origin": baseline.origin,
        "rows": baseline.rows,
        "streams": [_stream_document(stream) for stream in baseline.streams],
        "counts": baseline.counts.tolist(),
        "hourly": {str(hour): counts.tolist() for hour, counts in baseline.hourly.items()},
        "latency_us": [_word(value) for value in baseline.latency_us],
        "variation": [_word(value) for value in baseline.variation],
        "rate_variation": {name: _word(value) for name, value in baseline.rate_variation.items()},
        "quality": None if baseline.quality is None else _quality_document(baseline.quality),
    }
    data = _canonical(document)
    if len(data) > MAX_BYTES:
        raise ValueError(f"a baseline of {len(data)} bytes is too large: at most {MAX_BYTES}; monitor fewer elements")
    return data


def from_document(data: bytes) -> Baseline:
    """The baseline of a document, with its digest. Raises: ValueError, with what is wrong, for anything else."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}") from None
    baseline = _baseline(
        _table(document, "the document", "format origin rows streams counts hourly latency_us variation rate_variation quality")
    )
    return replace(baseline, digest=hashlib.sha256(data).hexdigest())


def with_digest(baseline: Baseline) -> Baseline:
    """The same baseline with the digest that its document would have."""
    return replace(baseline, digest=hashlib.sha256(to_document(baseline)).hexdigest())


def edges_digest(layout: Layout) -> str:
    """SHA-256 of what windows are counted by: frozen bins and vocabularies."""
    return hashlib.sha256(_canonical([_stream_document(stream) for stream in layout.streams])).hexdigest()


def _canonical(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _word(value: float) -> float | str:
    """A number as JSON has it: exact, and a text where JSON has none."""
    return float(value) if isfinite(value) else str(float(value))


def _stream_document(stream: Stream) -> dict[str, Any]:
    if isinstance(stream, Category):
        return {
            "kind": "category",
            "name": stream.name,
            "origin": stream.origin,
            "vocabulary": list(stream.vocabulary),
            "others": list(stream.others),
        }
    return {
        "kind": "numeric",
        "name": stream.name,
        "origin": stream.origin,
        "edges": [_word(edge) for edge in stream.edges],
        "low": _word(stream.low),
        "high": _word(stream.high),
        "winsor": [_word(value) for value in stream.winsor],
        "center": _word(stream.center),
        "scale": _word(stream.scale),
    }


def _quality_document(quality: ReferenceQuality) -> dict[str, Any]:
    return {
        "kind": quality.kind,
        "rows": quality.rows,
        "metrics": {name: _word(value) for name, value in quality.metrics.items()},
        "loss_mean": _word(quality.loss_mean),
        "loss_upper": _word(quality.loss_upper),
        "loss_rows": quality.loss_rows,
        "loss_scale": _word(quality.loss_scale),
        "calibration": [[_word(score), _word(probability)] for score, probability in quality.calibration],
    }


def _baseline(document: Mapping[str, Any]) -> Baseline:
    if document["format"] != FORMAT:
        raise ValueError(f"format {str(document['format'])[:40]!r} is not {FORMAT}")
    origin = document["origin"]
    if origin not in ("registration", "learned"):
        raise ValueError("origin is neither 'registration' nor 'learned'")
    rows = _whole(document["rows"], "rows", 1, MAX_ROWS)
    streams = tuple(_stream(each) for each in _list(document["streams"], "streams", 2**20))
    if not streams:
        raise ValueError("streams: there are none")
    _distinct([stream.name for stream in streams], "streams: names")
    layout = Layout(streams)
    counts = _counts(document["counts"], "counts", layout, rows)
    hourly = {}
    for word, own in _mapping(document["hourly"], "hourly").items():
        if word not in _HOURS:
            raise ValueError(f"hourly: {word[:40]!r} is no hour of the week")
        hourly[int(word)] = _counts(own, f"hourly {word}", layout, None)
    if sum(layout.cells(own, 0).rows for own in hourly.values()) > rows:
        raise ValueError(f"hourly: more rows than {rows}")
    latency = _numbers(document["latency_us"], "latency_us", 3, 3)
    if not all(0 <= value < inf for value in latency):
        raise ValueError("latency_us: not three numbers of at least 0")
    differing = tuple(_numbers(document["variation"], "variation", 0, len(streams)))
    if len(differing) not in (0, len(streams)) or not all(0 <= value < inf for value in differing):
        raise ValueError("variation: not a number of at least 0 for each stream")
    rates = dict(sorted(_mapping(document["rate_variation"], "rate_variation").items()))
    of_rates = dict(zip(rates, _numbers(list(rates.values()), "rate_variation", 0, 2**22), strict=True))
    _sendable("".join(of_rates), "rate_variation")
    if not all(0 <= value < inf for value in of_rates.values()):
        raise ValueError("rate_variation: not a number of at least 0 for each")
    quality = None if document["quality"] is None else _quality(document["quality"])
    quantiles = (latency[0], latency[1], latency[2])
    return Baseline(streams, counts, rows, origin, dict(sorted(hourly.items())), quality, quantiles, differing, of_rates)


_HOURS = frozenset(map(str, range(HOURS)))


def _stream(document: Any) -> Stream:
    kind = document.get("kind") if isinstance(document, dict) else None
    if kind == "numeric":
        return _numeric(_table(document, "a numeric stream", "kind name origin edges low high winsor center scale"))
    if kind == "category":
        return _category(_table(document, "a category stream", "kind name origin vocabulary others"))
    raise ValueError("streams: one is neither 'numeric' nor 'category'")


def _numeric(document: Mapping[str, Any]) -> Numeric:
    name, origin = _name(document)
    edges = _numbers(document["edges"], f"'{name}': edges", 0, _MAX_BINS)
    if not all(map(isfinite, edges)) or any(one >= other for one, other in pairwise(edges)):
        raise ValueError(f"'{name}': edges are not finite, ascending and distinct")
    low, high = _number(document["low"], f"'{name}': low"), _number(document["high"], f"'{name}': high")
    winsor = _numbers(document["winsor"], f"'{name}': winsor", 2, 2)
    center, scale = _number(document["center"], f"'{name}': center"), _number(document["scale"], f"'{name}': scale")
    if not low <= high:
        raise ValueError(f"'{name}': low is above high")
    if not (all(map(isfinite, (*winsor, center))) and winsor[0] <= winsor[1]):
        raise ValueError(f"'{name}': winsor and center are not finite, or not in order")
    if not MIN_SCALE <= scale <= MAX_SCALE:
        raise ValueError(f"'{name}': scale {scale:g} is out of range")
    return Numeric(name, origin, tuple(edges), low, high, (winsor[0], winsor[1]), center, scale)


def _category(document: Mapping[str, Any]) -> Category:
    name, origin = _name(document)
    vocabulary = _list(document["vocabulary"], f"'{name}': vocabulary", _MAX_BINS)
    if not all(type(text) is str for text in vocabulary):
        raise ValueError(f"'{name}': vocabulary: not all are texts")
    _sendable("".join(vocabulary), f"'{name}': vocabulary")
    _distinct(vocabulary, f"'{name}': vocabulary")
    others = _list(document["others"], f"'{name}': others", _MAX_OTHERS)
    if not all(type(each) is int and 0 <= each < 2**64 for each in others):
        raise ValueError(f"'{name}': others: not all are hashes of 64 bits")
    if any(one >= other for one, other in pairwise(others)):
        raise ValueError(f"'{name}': others are not ascending and distinct")
    return Category(name, origin, tuple(vocabulary), tuple(others))


def _name(document: Mapping[str, Any]) -> tuple[str, Any]:
    name, origin = document["name"], document["origin"]
    if type(name) is not str or not 0 < len(name) <= 1024:
        raise ValueError("streams: one has no name, or one that is too long")
    _sendable(name, "streams: names")
    if origin not in _ORIGINS:
        raise ValueError(f"'{name}': origin is none of {', '.join(_ORIGINS)}")
    return name, origin


def _counts(values: Any, what: str, layout: Layout, rows: int | None) -> Counts:
    """Counts that add up: of every stream the same rows, which are `rows` where that is known."""
    cells = _list(values, what, layout.size)
    if len(cells) != layout.size:
        raise ValueError(f"{what}: {len(cells)} numbers where the streams have {layout.size} cells")
    if not set(map(type, cells)) <= {int} or not all(-(2**63) <= value < 2**63 for value in cells):
        raise ValueError(f"{what}: not all are integers of 64 bits")
    counts = np.array(cells, dtype=np.int64)
    for index, stream in layout:
        own = layout.cells(counts, index)
        rows = own.rows if rows is None else rows
        if not _add_up(own, rows):
            raise ValueError(f"{what}: those of '{stream.name}' do not add up to {rows} rows")
    return counts


def _add_up(own: Cells, rows: int) -> bool:
    parts = [*own.bins.tolist(), own.missing, own.non_finite, own.unseen]
    if any(not 0 <= part <= MAX_ROWS for part in (*parts, own.below, own.above)):
        return False
    furthest = MAX_UNITS * SUM_SCALE
    bounded = all(abs(total) <= count * furthest for total, count in zip(own.sums.tolist(), own.bins.tolist(), strict=False))
    return sum(parts) == rows and own.below + own.above <= own.present and bounded


def _quality(document: Any) -> ReferenceQuality:
    table = _table(document, "quality", "kind rows metrics loss_mean loss_upper loss_rows loss_scale calibration")
    if table["kind"] not in _KINDS:
        raise ValueError(f"quality: kind is none of {', '.join(_KINDS)}")
    given = sorted(_mapping(table["metrics"], "metrics").items())
    metrics = {name: _number(value, f"quality: {name[:40]}") for name, value in given}
    _sendable("".join(metrics), "quality: metrics")
    pairs = [_numbers(pair, "quality: calibration", 2, 2) for pair in _list(table["calibration"], "calibration", 2**20)]
    if any(not isfinite(score) or not 0 <= probability <= 1 for score, probability in pairs):
        raise ValueError("quality: calibration: a score is not finite, or a probability is none")
    if any(one[0] > other[0] or one[1] > other[1] for one, other in pairwise(pairs)):
        raise ValueError("quality: calibration does not ascend")
    losses = [_number(table[name], f"quality: {name}") for name in ("loss_mean", "loss_upper", "loss_scale")]
    if not (all(map(isfinite, losses)) and losses[0] <= losses[1] and losses[2] > 0):
        raise ValueError("quality: losses are not finite, or not in order")
    return ReferenceQuality(
        kind=table["kind"],
        rows=_whole(table["rows"], "quality: rows", 0, MAX_ROWS),
        metrics=metrics,
        loss_mean=losses[0],
        loss_upper=losses[1],
        loss_rows=_whole(table["loss_rows"], "quality: loss_rows", 0, MAX_ROWS),
        calibration=tuple((score, probability) for score, probability in pairs),
        loss_scale=losses[2],
    )


def _table(value: Any, what: str, names: str) -> Mapping[str, Any]:
    """A JSON object with exactly these names."""
    table = _mapping(value, what)
    if wrong := set(names.split()) ^ set(table):
        raise ValueError(f"{what}: missing or unknown: {', '.join(sorted(wrong))[:200]}")
    return table


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what}: no object")
    return value


def _list(value: Any, what: str, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"{what}: no list, or one of more than {most}")
    return value


def _sendable(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what}: half a character") from None


def _distinct(texts: list[str], what: str) -> None:
    if len(set(texts)) != len(texts):
        raise ValueError(f"{what} are not distinct")


def _whole(value: Any, what: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{what}: no integer from {least} to {most}")
    return value


def _number(value: Any, what: str) -> float:
    if type(value) is str and value in ("inf", "-inf", "nan"):
        return float(value)
    if (type(value) is float and isfinite(value)) or (type(value) is int and abs(value) <= 2**53):
        return float(value)
    raise ValueError(f"{what}: no number")


def _numbers(value: Any, what: str, least: int, most: int) -> list[float]:
    numbers = [_number(each, what) for each in _list(value, what, most)]
    if len(numbers) < least:
        raise ValueError(f"{what}: fewer than {least} numbers")
    return numbers
