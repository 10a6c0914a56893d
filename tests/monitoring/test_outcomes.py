"""The rules of an outcome against a model of dicts; what is kept, what is forgotten, what survives a restart."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.errors import InvalidRequest
from server.core.monitoring_settings import ModelMonitoring
from server.core.versions import VersionKey
from server.monitoring import outcomes_document
from server.monitoring.early import EARLY_US, Early
from server.monitoring.early import Waiting as EarlyOutcome
from server.monitoring.outcome import Outcome, Receipt, ReceiptStatus
from server.monitoring.outcomes import KEPT_PARTS, LEFT_VERSIONS, Outcomes
from server.monitoring.quality import reference_quality
from tests.monitoring.scored import KEY, SECOND, Now, baseline_of, scored, settings_of, taking

ACCEPTED, DUPLICATE, REPLACED, LATE, NOT_SAMPLED = ReceiptStatus
ORDER = (ACCEPTED, REPLACED, DUPLICATE, LATE)


@dataclass
class Prediction:
    due_us: int
    label: float | None = None


@dataclass
class Waiting:
    label: float
    since_us: int
    found: bool = False


class Naive:
    """The same rules, spelt out."""

    def __init__(self, horizon_us: int, versions: list[int]) -> None:
        self.horizon_us = horizon_us
        self.predictions: dict[int, dict[tuple[str, int], Prediction]] = {version: {} for version in versions}
        self.early: dict[tuple[int, str, int], Waiting] = {}
        self.counts: Counter[ReceiptStatus] = Counter()

    def take(self, prediction: Prediction, label: float, now_us: int) -> ReceiptStatus:
        if prediction.label == label:
            return DUPLICATE
        if now_us >= prediction.due_us if self.horizon_us else prediction.label is not None:
            return LATE
        status = ACCEPTED if prediction.label is None else REPLACED
        prediction.label = label
        return status

    def add(self, version: int, row: tuple[str, int], now_us: int) -> None:
        if row in self.predictions[version]:
            return
        prediction = self.predictions[version][row] = Prediction(now_us + self.horizon_us)
        for place in (0, version):
            waiting = self.early.get((place, *row))
            if waiting is not None:
                status = self.take(prediction, waiting.label, now_us)
                if not waiting.found:
                    self.counts[status] += 1
                waiting.found = True

    def report(self, version: int, row: tuple[str, int], label: float, now_us: int) -> Receipt:
        found = [
            (ORDER.index(self.take(predictions[row], label, now_us)), each)
            for each, predictions in self.predictions.items()
            if version in (0, each) and row in predictions
        ]
        if found:
            best, answered = min(found)
            self.counts[ORDER[best]] += 1
            return Receipt(ORDER[best], answered)
        status = self.wait(version, row, label, now_us)
        self.counts[status] += status is not ACCEPTED
        return Receipt(status)

    def wait(self, version: int, row: tuple[str, int], label: float, now_us: int) -> ReceiptStatus:
        before = self.early.get((version, *row))
        if before is None:
            self.early[version, *row] = Waiting(label, now_us)
            return ACCEPTED
        if before.label == label:
            return DUPLICATE
        if before.found:
            return LATE
        before.label = label
        return REPLACED

    def expire(self, now_us: int) -> None:
        for place, waiting in list(self.early.items()):
            if waiting.since_us <= now_us - EARLY_US:
                del self.early[place]
                if not waiting.found:
                    self.counts[NOT_SAMPLED] += 1

    def counted(self, version: int, now_us: int) -> list[Prediction]:
        known = self.predictions[version].values()
        return [each for each in known if now_us >= each.due_us or not self.horizon_us]


VERSIONS = st.sampled_from([3, 4])
ROWS = st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 1))
STEPS = st.one_of(
    st.tuples(st.just("add"), VERSIONS, st.lists(ROWS, max_size=4)),
    st.tuples(st.just("report"), st.sampled_from([0, 3, 4]), ROWS, st.sampled_from([0.0, 1.0])),
    st.tuples(st.just("pass"), st.sampled_from([1, 40, 200])),
    st.tuples(st.just("tick")),
    st.tuples(st.just("restart")),
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([0, 60]), st.lists(STEPS, max_size=25))
def test_outcomes_follow_their_rules(horizon_s: int, steps: list[Any]) -> None:
    now = Now()
    model = Naive(horizon_s * SECOND, [3, 4])

    def made() -> Outcomes:
        fresh = Outcomes(now)
        for version in (3, 4):
            fresh.serve(VersionKey("m", version), settings_of(horizon_s=horizon_s), None)
        return fresh

    outcomes, reports = made(), 0
    for kind, *said in [*steps, ("pass", 200), ("tick",)]:
        if kind == "add":
            version, rows = said
            ids, places = [each for each, _ in rows], [row for _, row in rows]
            outcomes.add([scored(ids, [0.75] * len(rows), rows=places, key=VersionKey("m", version), time_us=now.us)])
            for row in rows:
                model.add(version, row, now.us)
        elif kind == "report":
            version, (id_, row), label = said
            reports += 1
            assert outcomes.report(Outcome("m", version, id_, row, label)) == model.report(version, (id_, row), label, now.us)
        elif kind == "pass":
            now.us += said[0] * SECOND
        elif kind == "tick":
            outcomes.tick(now.us)
            model.expire(now.us)
        else:
            model.expire(now.us)
            document, outcomes = outcomes.document(), made()
            outcomes.restore(document)
    assert {key: count for key, count in outcomes.counts().items() if count} == {
        ("m", status): count for status, count in model.counts.items() if count
    }
    assert outcomes.waiting == len(model.early)
    assert sum(model.counts.values()) + sum(not each.found for each in model.early.values()) == reports
    for reading in outcomes.readings():
        counted = model.counted(reading.key.version, now.us)
        labels = [each.label for each in counted if each.label is not None]
        assert (reading.served, reading.labelled) == (len(counted), len(labels))
        right = {"accuracy": sum(labels) / len(labels)} if labels else {}
        assert {name: metric.value for name, metric in reading.realised.items() if name == "accuracy"} == pytest.approx(right)


@pytest.mark.parametrize("horizon_s", [0, 60])
def test_one_outcome_after_the_other(horizon_s: int) -> None:
    now = Now()
    outcomes = taking(now, settings_of(horizon_s=horizon_s))
    outcomes.add([scored(["a", "b"], [0.9, 0.9])])

    def said(label: float, id_: str = "a") -> ReceiptStatus:
        return outcomes.report(Outcome("m", 3, id_, 0, label)).status

    assert [said(1.0), said(1.0), said(0.0)] == [ACCEPTED, DUPLICATE, REPLACED if horizon_s else LATE]
    now.us += 60 * SECOND - 1
    assert said(1.0) is (REPLACED if horizon_s else DUPLICATE)
    now.us += 1
    # counted as it is, by whoever looks next
    assert [said(0.0), said(1.0), said(0.0)] == [LATE, DUPLICATE, LATE]
    assert said(1.0, "b") is (LATE if horizon_s else ACCEPTED)
    reading = outcomes.readings()[0]
    assert (reading.served, reading.labelled) == (2, 1 if horizon_s else 2)
    assert reading.realised["accuracy"].value == 1.0


def test_an_outcome_of_no_version_says_which_one_answered() -> None:
    now = Now()
    outcomes = Outcomes(now)
    for version in (3, 4):
        outcomes.serve(VersionKey("m", version), settings_of(), None)
    outcomes.add([scored(["a"], [0.5], key=VersionKey("m", 4))])
    assert outcomes.report(Outcome("m", 0, "a", 0, 1.0)) == Receipt(ACCEPTED, 4)
    assert outcomes.report(Outcome("m", 3, "a", 0, 1.0)) == Receipt(ACCEPTED, 0)
    assert outcomes.report(Outcome("other", 0, "a", 0, 1.0)) == Receipt(ACCEPTED, 0)


def test_what_cannot_be_sampled_any_more_is_not_kept() -> None:
    now = Now()
    outcomes = Outcomes(now, lambda model, id_hash: model == "m")
    outcomes.serve(KEY, settings_of(), None)
    assert outcomes.report(Outcome("n", 0, "a", 0, 1.0)) == Receipt(NOT_SAMPLED)
    observed = Outcome("m", 0, "a", 0, 1.0, now.us - EARLY_US)
    assert outcomes.report(observed) == Receipt(NOT_SAMPLED)
    assert outcomes.report(replace(observed, observed_us=observed.observed_us + 1)) == Receipt(ACCEPTED)
    outcomes.add([scored(["a"], [0.5])])
    assert outcomes.report(replace(observed, label=1.0)) == Receipt(DUPLICATE, 3)
    assert outcomes.counts() == {
        ("n", NOT_SAMPLED): 1,
        ("m", NOT_SAMPLED): 1,
        ("m", ACCEPTED): 1,
        ("m", DUPLICATE): 1,
    }


def test_what_was_not_sampled_is_told_of_the_version_that_it_named() -> None:
    now = Now()
    outcomes = Outcomes(now)
    for version in (3, 4):
        outcomes.serve(VersionKey("m", version), settings_of(), None)
        for arm in ("champion", "other"):
            outcomes.add([scored(["a"], [0.5], key=VersionKey("m", version), arm=arm)])
    for version, count in ((3, 1), (4, 2), (0, 4), (9, 8)):
        for number in range(count):
            outcomes.report(Outcome("m", version, f"unknown-{version}-{number}", 0, 1.0))
    assert not any(reading.outcomes for reading in outcomes.readings())
    now.us += EARLY_US
    told = {(reading.key.version, reading.arm): reading.outcomes.get("not_sampled", 0) for reading in outcomes.readings()}
    assert told == {(3, "champion"): 1, (3, "other"): 0, (4, "champion"): 6, (4, "other"): 0}
    assert outcomes.counts() == {("m", NOT_SAMPLED): 15}
    assert outcomes.waiting == 0


def test_early_outcomes_are_bounded_and_the_oldest_give_way() -> None:
    early = Early(limit=3, patience_us=100)
    for key in range(3):
        assert early.put(("m", 0), key, 1.0, key) == (None, [])
    assert [each for each, _ in early.meet(("m", 0), [1, 9])] == [1]
    assert list(early.meet(("m", 4), [1])) == []
    assert early.put(("n", 2), 3, 1.0, 3) == (None, [("m", 0)])
    # one that was found is not replaced
    assert early.put(("m", 0), 1, 0.0, 3) == (EarlyOutcome(1.0, 1, True), [])
    assert early.rows()[0] == ("m", 0, 1, EarlyOutcome(1.0, 1, True))
    assert early.put(("n", 2), 4, 1.0, 4) == (None, [])
    assert len(early) == 3
    copy = Early(limit=3, patience_us=100)
    copy.restore(early.rows())
    assert copy.rows() == early.rows()
    for each in (early, copy):
        assert each.expire(101) == []
        assert each.expire(103) == [("m", 0), ("n", 2)]
        assert each.expire(1000) == [("n", 2)]
        assert len(each) == 0


def test_versions_without_quality_take_nothing() -> None:
    outcomes = taking(Now(), ModelMonitoring())
    outcomes.add([scored(["a"], [0.5])])
    assert outcomes.readings() == ()
    assert outcomes.quality_of("m") is None
    outcomes.leave(KEY)
    outcomes.serve(KEY, settings_of(threshold=0.3), None)
    outcomes.serve(VersionKey("m", 4), settings_of(threshold=0.4), None)
    thresholds = [getattr(outcomes.quality_of("m", version), "threshold", None) for version in (0, 3, 4, 5)]
    assert thresholds == [0.4, 0.3, 0.4, None]


def test_figures_go_on_while_they_mean_the_same() -> None:
    now = Now()
    reference = reference_quality(np.array([0.2, 0.8, 0.7, 0.1]), np.array([0.0, 1.0, 1.0, 0.0]), settings_of().quality)  # type: ignore[arg-type]
    outcomes = taking(now, settings_of(), reference)
    outcomes.add([scored(["a", "b"], [0.9, 0.1])])
    outcomes.report(Outcome("m", 3, "a", 0, 1.0))
    outcomes.leave(KEY)
    assert outcomes.report(Outcome("m", 3, "b", 0, 1.0)) == Receipt(ACCEPTED, 3)
    outcomes.serve(KEY, settings_of(), baseline_of(reference))
    assert [reading.labelled for reading in outcomes.readings()] == [2]
    document = outcomes.document()
    for changed in (
        (settings_of(threshold=0.6), baseline_of(reference)),
        (settings_of(), None),
        (settings_of(window_s=60), baseline_of(reference)),
    ):
        later = Outcomes(now)
        later.serve(KEY, *changed)
        later.restore(document)
        assert later.readings() == ()
    outcomes.serve(KEY, settings_of(threshold=0.6), baseline_of(reference))
    assert outcomes.readings() == ()
    outcomes.add([scored(["a"], [0.9])])
    outcomes.serve(KEY, ModelMonitoring(), None)
    assert outcomes.readings() == ()


def test_versions_that_left_are_forgotten_in_turn() -> None:
    outcomes = Outcomes(Now())
    keys = [VersionKey("m", version) for version in range(1, LEFT_VERSIONS + 3)]
    for key in keys:
        outcomes.serve(key, settings_of(), None)
        outcomes.add([scored([f"{key}"], [0.9], key=key)])
    for key in keys[:-1]:
        outcomes.leave(key)
    outcomes.leave(VersionKey("never", 1))
    assert [reading.key for reading in outcomes.readings()] == keys[1:]
    assert outcomes.quality_of("m", 1) is None


def test_rows_that_no_outcome_can_be_told_of_are_counted() -> None:
    now = Now()
    outcomes = taking(now, settings_of(output="score", column=1))
    scores = np.array([[0.5, 0.5], [0.5, np.nan], [0.5, 1.5], [0.5, 1.000001], [9.0, 0.25]], np.float32)
    outcomes.add([scored(["a", "b", "c", "", "e"], scores)])
    outcomes.add(
        [scored(["f"], np.zeros((1, 1))), scored(["g"], np.array([[b"x", b"y"]], object)), scored([], np.zeros((0, 2)))]
    )
    outcomes.add([replace(scored(["h"], np.zeros((1, 2))), outputs={"other": np.zeros((1, 2))})])
    judged: Any = outcomes._judged[KEY, "champion"]
    assert (judged.series.served, judged.series.without_id, judged.series.unusable) == (2, 1, 5)
    assert outcomes.report(Outcome("m", 3, "e", 0, 1.0)) == Receipt(ACCEPTED, 3)
    assert outcomes.report(Outcome("m", 3, "b", 0, 1.0)) == Receipt(ACCEPTED, 0)
    kept = outcomes.document()
    later = taking(now, settings_of(output="score", column=1))
    later.restore(kept)
    assert later.document() == kept
    assert later.readings() == outcomes.readings()


def test_a_version_without_a_usable_score_is_kept_as_well() -> None:
    now = Now()
    outcomes = taking(now, settings_of())
    outcomes.add([scored(["a"], [7.0])])
    later = taking(now, settings_of())
    later.restore(outcomes.document())
    judged: Any = later._judged[KEY, "champion"]
    assert (judged.series.unusable, judged.series.served, judged.series.pending) == (1, 0, None)
    assert later.readings() == outcomes.readings()


def test_a_score_of_another_size_is_not_usable() -> None:
    outcomes = taking(Now(), settings_of(kind="multiclass"))
    outcomes.add([scored(["a"], [[0.5, 0.5]]), scored(["b"], [[0.2, 0.2, 0.6]])])
    judged: Any = outcomes._judged[KEY, "champion"]
    assert (judged.series.served, judged.series.unusable) == (1, 1)


def test_pending_rows_are_bounded_by_rows_and_by_memory() -> None:
    outcomes = taking(Now(), settings_of(kind="multiclass", pending_rows=10**9))
    outcomes.add([scored(["a"], np.full((1, 65_536), 1 / 65_536))])
    judged: Any = outcomes._judged[KEY, "champion"]
    assert judged.series.pending._limit == 512 * 2**20 // (56 + 8 * 65_536)
    small = taking(Now(), settings_of(pending_rows=2))
    small.add([scored(["a", "b"], [0.5, 0.5])])
    small.report(Outcome("m", 0, "a", 0, 1.0))
    small.add([scored(["c"], [0.5])])
    assert small.report(Outcome("m", 0, "a", 0, 1.0)) == Receipt(ACCEPTED, 0)
    # what was known of it counts all the same
    assert [reading.labelled for reading in small.readings()] == [1]


@pytest.mark.parametrize(
    ("kind", "label", "fits"),
    [
        *(("binary", 1.0, True), ("binary", 2.0, False), ("binary", math.nan, False)),
        *(("multiclass", 2.0, True), ("multiclass", 1.5, False), ("multiclass", -1.0, False), ("multiclass", math.inf, False)),
        *(("regression", -1.5, True), ("regression", math.inf, False)),
    ],
)
def test_a_label_that_a_prediction_cannot_have_is_refused(kind: Any, label: float, fits: bool) -> None:
    """Settings may have changed since it was checked: it must not stop whoever counts."""
    outcomes = taking(Now(), settings_of(kind=kind))
    assert outcomes.report(Outcome("m", 0, "early", 0, label)) == Receipt(ACCEPTED, 0)
    outcomes.add([scored(["a", "early"], np.full((2, 3), 0.25))])
    if fits:
        assert outcomes.report(Outcome("m", 0, "a", 0, label)) == Receipt(ACCEPTED, 3)
    else:
        with pytest.raises(InvalidRequest, match=f"is of kind '{kind}', and cannot be"):
            outcomes.report(Outcome("m", 0, "a", 0, label))
    assert [reading.labelled for reading in outcomes.readings()] == [2 if fits else 0]
    counts = {("m", ACCEPTED): 2} if fits else {("m", NOT_SAMPLED): 1}
    assert {key: count for key, count in outcomes.counts().items() if count} == counts


def test_what_was_kept_waits_for_its_version() -> None:
    now, keys = Now(), [VersionKey("m", version) for version in range(1, 71)]
    outcomes = Outcomes(now)
    for key in keys:
        outcomes.serve(key, settings_of(), None)
        outcomes.add([scored([f"{key}"], [0.9], key=key)])
    before = outcomes.readings()
    first = Outcomes(now)
    first.restore(outcomes.document())
    assert first.readings() == ()
    # a restart later, and the oldest have given way
    second = Outcomes(now)
    second.restore(first.document())
    for key in keys:
        second.serve(key, settings_of(), None)
    assert second.readings() == before[-KEPT_PARTS:]
    assert second.report(Outcome("m", 0, f"{keys[-1]}", 0, 1.0)) == Receipt(ACCEPTED, 70)
    # once it has been served again it is kept no more
    again = Outcomes(now)
    again.restore(first.document())
    again.serve(keys[-1], settings_of(threshold=0.6), None)
    again.serve(keys[-1], settings_of(), None)
    assert again.readings() == ()


@pytest.mark.parametrize("missing", ["counts", "pending.labels", "total.rows"])
def test_what_was_kept_and_is_damaged_is_begun_anew(missing: str, caplog: pytest.LogCaptureFixture) -> None:
    now = Now()
    outcomes = taking(now, settings_of())
    outcomes.add([scored(["a"], [0.9])])
    kept, early, counts = outcomes_document.read(outcomes.document())
    broken = [
        replace(
            each,
            series={name: array for name, array in each.series.items() if name != missing},
            quality={name: array for name, array in each.quality.items() if name != missing},
        )
        for each in kept
    ]
    later = taking(now, settings_of())
    later.restore(outcomes_document.written(broken, early, counts))
    assert later.readings() == ()
    assert "what was known of outcomes is lost" in caplog.text
    later.add([scored(["a"], [0.9])])
    assert later.report(Outcome("m", 0, "a", 0, 1.0)) == Receipt(ACCEPTED, 3)


def test_many_rows_are_taken_in_their_order() -> None:
    now = Now()
    outcomes = taking(now, settings_of(horizon_s=1, pending_rows=2500))
    ids = [f"r{number}" for number in range(5000)]
    outcomes.add([scored(ids, np.linspace(0, 1, 5000)), scored(["last"], [0.5])])
    for number in (0, 2500, 2501, 4999):
        known = number > 2500
        assert outcomes.report(Outcome("m", 0, ids[number], 0, 1.0)) == Receipt(ACCEPTED, 3 if known else 0)
    now.us += SECOND
    reading = outcomes.readings()[0]
    assert (reading.served, reading.labelled) == (2500, 2)
    judged: Any = outcomes._judged[KEY, "champion"]
    assert judged.series.pending.forgotten == 2501


def test_what_was_kept_in_another_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = taking(Now(), settings_of())
    with monkeypatch.context() as patched:
        patched.setattr(outcomes_document, "FORMAT", 2)
        document = outcomes.document()
    with pytest.raises(ValueError, match="kept in format 2, and this is 1"):
        outcomes.restore(document)


@pytest.mark.parametrize("document", [b"", b"PK", b"not an archive", np.zeros(3).tobytes()])
def test_what_is_no_document_changes_nothing(document: bytes) -> None:
    outcomes = taking(Now(), settings_of())
    outcomes.add([scored(["a"], [0.5])])
    before = outcomes.readings()
    with pytest.raises(ValueError, match=r"cannot be understood|allow_pickle|pickled"):
        outcomes.restore(document)
    assert outcomes.readings() == before
