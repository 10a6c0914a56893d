"""`baseline.json`: the same baseline is the same bytes, and nothing else is believed."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.settings import ModelSettings
from server.monitoring import baseline_document
from server.monitoring.baseline import Baseline, ReferenceQuality
from server.monitoring.baseline_document import edges_digest, from_document, to_document, with_digest
from server.monitoring.build import build
from server.monitoring.streams import Layout
from tests.monitoring.plain_rows import HOUR_US, rows_of, texts

QUALITY = ReferenceQuality(
    "binary", 20, {"auc": 0.75, "log_loss": float("nan")}, 0.1, 0.2, 20, ((0.1, 0.2), (0.5, 0.2), (0.5, 1.0)), 2.0
)


def made() -> Baseline:
    rng = np.random.default_rng(6)
    samples = rows_of(
        {
            "x": np.append(rng.normal(size=19), np.nan).astype(np.float32)[:, None],
            "t": texts(*[b"a"] * 10, *[b"\xff"] * 8, "é", b""),
            "none": np.full((20, 1), np.nan),
        },
        {"score": rng.random((20, 1))},
        time_us=np.repeat(np.array([96, 97], dtype=np.int64), 10) * HOUR_US,
    )
    tolerant = ModelSettings.model_validate({"monitoring": {"tolerance": 1.0}})
    made = build(samples, tolerant, quality=QUALITY, latency_us=(1.5, 2.5, 1e6))
    return replace(made, variation=(0.0, 0.1, 1e-300, 3.5)[: len(made.streams)], rate_variation={"x:missing": 0.25})


BASELINE = made()
DATA = to_document(BASELINE)


def same(one: Baseline, other: Baseline) -> bool:
    return (
        one.streams == other.streams
        and one.counts.tobytes() == other.counts.tobytes()
        and {hour: counts.tobytes() for hour, counts in one.hourly.items()}
        == {hour: counts.tobytes() for hour, counts in other.hourly.items()}
        and (one.rows, one.origin, one.latency_us) == (other.rows, other.origin, other.latency_us)
        and (one.variation, one.rate_variation) == (other.variation, other.rate_variation)
        and repr(one.quality) == repr(other.quality)
    )


def test_a_baseline_comes_back_to_the_bit() -> None:
    back = from_document(DATA)
    assert same(back, BASELINE)
    assert back.digest == hashlib.sha256(DATA).hexdigest()
    assert to_document(back) == DATA == to_document(made())
    assert with_digest(BASELINE).digest == back.digest
    assert sorted(back.hourly) == [0, 1]


def test_one_without_quality_and_a_learnt_one_come_back_too() -> None:
    plain = replace(BASELINE, quality=None, origin="learned", hourly={})
    assert same(from_document(to_document(plain)), plain)


def test_a_baseline_too_large_is_refused_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline_document, "MAX_BYTES", len(DATA) - 1)
    with pytest.raises(ValueError, match="too large"):
        to_document(BASELINE)
    with pytest.raises(ValueError, match="more than"):
        from_document(DATA)


def test_the_digest_of_edges_is_of_what_windows_are_counted_by() -> None:
    layout = BASELINE.layout
    assert edges_digest(layout) == edges_digest(Layout(BASELINE.streams))
    moved = replace(layout.streams[0], edges=(0.0,))  # type: ignore[arg-type]  # the first is of numbers
    assert edges_digest(Layout((moved, *layout.streams[1:]))) != edges_digest(layout)


Change = Callable[[dict[str, Any]], object]


def put(*path: str | int, value: object) -> Change:
    """A change of one place."""

    def change(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = value

    return change


X, T = 0, 1
WRONG: list[tuple[Change, str]] = [
    (put("format", value=2), "format '2'"),
    (put("origin", value="guessed"), "origin is neither"),
    (put("extra", value=1), "unknown: extra"),
    (lambda document: document.pop("rows"), "unknown: rows"),
    (put("rows", value=0), "rows: no integer"),
    (put("rows", value=True), "rows: no integer"),
    (put("rows", value=10**9), "rows: no integer"),
    (put("rows", value=21), "do not add up to 21 rows"),
    (put("streams", value=[]), "there are none"),
    (put("streams", value={}), "streams: no list"),
    (put("streams", X, value="x"), "neither 'numeric'"),
    (put("streams", X, "kind", value="other"), "neither 'numeric'"),
    (put("streams", X, "name", value="t"), "not distinct"),
    (put("streams", X, "name", value=""), "no name"),
    (put("streams", X, "name", value=7), "no name"),
    (put("streams", X, "name", value="\ud800"), "half a character"),
    (put("streams", T, "vocabulary", value=["a", "\udc00"]), "half a character"),
    (put("quality", "metrics", "\udfff", value=1.0), "half a character"),
    (put("streams", X, "origin", value="label"), "origin is none"),
    (put("streams", X, "edges", value=[2.0, 1.0]), "ascending and distinct"),
    (put("streams", X, "edges", value=[1.0, 1.0]), "ascending and distinct"),
    (put("streams", X, "edges", value=["inf"]), "not finite"),
    (put("streams", X, "edges", value=["one"]), "no number"),
    (put("streams", X, "edges", value=[[1.0]]), "no number"),
    (put("streams", X, "edges", value=[2**60]), "no number"),
    (put("streams", X, "edges", value=[0.0] * 5000), "more than 4096"),
    (put("streams", X, "low", value=9e9), "low is above high"),
    (put("streams", X, "low", value="nan"), "low is above high"),
    (put("streams", X, "winsor", value=[1.0]), "fewer than 2"),
    (put("streams", X, "winsor", value=[1.0, 0.0]), "not in order"),
    (put("streams", X, "center", value="inf"), "not finite"),
    (put("streams", X, "scale", value=0.0), "scale 0 is out of range"),
    (put("streams", X, "scale", value="inf"), "scale inf is out of range"),
    (put("streams", T, "vocabulary", value=[1]), "not all are texts"),
    (put("streams", T, "vocabulary", value=["a", "a"]), "not distinct"),
    (put("streams", T, "others", value=[-1]), "64 bits"),
    (put("streams", T, "others", value=[2**64]), "64 bits"),
    (put("streams", T, "others", value=[2, 1]), "not ascending"),
    (put("counts", value=[]), "0 numbers where"),
    (put("counts", value=[0] * 10**6), "more than"),
    (put("counts", 0, value=1.0), "integers of 64 bits"),
    (put("counts", 0, value=2**63), "integers of 64 bits"),
    (put("counts", 0, value=-1), "do not add up"),
    (put("counts", 0, value=2**62), "do not add up"),
    (put("counts", 12, value=20), "do not add up"),
    (put("counts", 14, value=2**62), "do not add up"),
    (put("hourly", value=[]), "hourly: no object"),
    (put("hourly", "168", value=[]), "no hour of the week"),
    (put("hourly", "007", value=[]), "no hour of the week"),
    (put("hourly", "0", value=[]), "hourly 0"),
    (lambda document: document["hourly"].update({"5": document["counts"]}), "more rows than 20"),
    (put("latency_us", value=[1.0, 2.0]), "fewer than 3"),
    (put("latency_us", value=[1.0, 2.0, "inf"]), "latency_us"),
    (put("latency_us", value=[1.0, 2.0, -1]), "latency_us"),
    (put("variation", value=[0.5]), "variation"),
    (put("rate_variation", value={"x:missing": -1}), "rate_variation"),
    (put("rate_variation", value=[]), "rate_variation"),
    (put("variation", value=[-0.5, 0.0, 0.0]), "variation"),
    (put("quality", "kind", value="ordinal"), "quality: kind"),
    (put("quality", "metrics", value=[]), "metrics: no object"),
    (put("quality", "metrics", "auc", value=None), "quality: auc: no number"),
    (put("quality", "calibration", value=[[0.1, 1.5]]), "a probability is none"),
    (put("quality", "calibration", value=[["nan", 0.5]]), "a score is not finite"),
    (put("quality", "calibration", value=[[0.5, 0.5], [0.6, 0.4]]), "does not ascend"),
    (put("quality", "calibration", value=[[0.5, 0.5], [0.4, 0.6]]), "does not ascend"),
    (put("quality", "loss_mean", value=0.3), "losses"),
    (put("quality", "loss_upper", value="inf"), "losses"),
    (put("quality", "loss_scale", value=0), "losses"),
    (put("quality", "rows", value=-1), "quality: rows"),
    (put("quality", value=7), "quality: no object"),
]


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_every_field_is_checked(change: Change, said: str) -> None:
    document = json.loads(DATA)
    change(document)
    with pytest.raises(ValueError, match=said) as refused:
        from_document(json.dumps(document).encode())
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b'{"format": NaN}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 10_000,
        DATA[:-1],
        DATA.replace(b'"rows":20', b'"rows":1e400'),
        DATA.replace(b'"rows":20', b'"rows":NaN'),
    ],
)
def test_what_is_no_baseline_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"no JSON|no object|missing or unknown|rows: no integer"):
        from_document(data)


@given(st.integers(0, len(DATA) - 1), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_a_damaged_document_is_refused_or_is_a_sound_baseline(place: int, byte: int) -> None:
    data = DATA[:place] + bytes([byte]) + DATA[place + 1 :]
    try:
        back = from_document(data)
    except ValueError:
        return
    assert same(from_document(to_document(back)), back)
