from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.registry.manifest import Data, Environment, FileDigest, GoldenRef, Manifest, ManifestFields
from server.registry.reproduction import (
    Rebuilt,
    Verdict,
    changed_inputs,
    changed_metrics,
    environment_differences,
    judge,
)

A, B = (FileDigest(sha256=letter * 64, bytes=5) for letter in "ab")
FACTS = ManifestFields(
    data=Data(source="flights", digest="d1", rows=10, notes={"sha256 of a.csv": "1", "split": "by day"}),
    seeds={"torch": 13},
    hyperparameters={"epochs": 6, "hidden": [128, 64]},
    metrics={"auc": 0.75, "difference": 2e-7},
)
RECORDED = Manifest(
    model="demo",
    version=3,
    created_at=datetime(2025, 3, 1, tzinfo=UTC),
    files={"model.onnx": A, "golden.npz": A},
    golden=GoldenRef(file="golden.npz", rtol=1e-5, atol=0),
    **{name: getattr(FACTS, name) for name in ManifestFields.model_fields},
)
HERE = Environment(python="3.11.7", platform="Linux", lock_digest="c" * 64, packages={"numpy": "2.1.0", "onnx": "1.18"})


def facts(**changes: Any) -> ManifestFields:
    return FACTS.model_copy(update=changes)


def rebuilt(found: ManifestFields = FACTS, **files: FileDigest) -> Rebuilt:
    return Rebuilt(found, {"model.onnx": A, "golden.npz": A} | {name.replace("_", "."): each for name, each in files.items()})


def test_the_same_bytes_are_identical() -> None:
    done = judge(RECORDED, rebuilt(), ("numpy 1 recorded, 2 installed",), None, 1e-4)
    assert (done.verdict, done.reasons, done.notes) == (Verdict.IDENTICAL, (), ())
    assert done.files == {"model.onnx": "same", "golden.npz": "same"}
    # other packages forbid nothing, but are always said
    assert done.environment == ("numpy 1 recorded, 2 installed",)
    assert (done.model, done.version) == ("demo", 3)


def test_a_file_that_no_version_has_is_noted() -> None:
    done = judge(RECORDED, rebuilt(extra_txt=A, b_txt=A), (), None, 1e-4)
    assert done.verdict is Verdict.IDENTICAL
    assert done.notes == ("written by the recipe and no file of the version: b.txt, extra.txt",)


def test_golden_answers_and_metrics_within_tolerance_are_equivalent() -> None:
    done = judge(RECORDED, rebuilt(facts(metrics={"auc": 0.75001, "difference": 3e-7}), model_onnx=B), (), None, 1e-4)
    assert (done.verdict, done.reasons) == (Verdict.EQUIVALENT, ("model.onnx: other bytes",))


def test_golden_answers_beyond_tolerance_are_different() -> None:
    done = judge(RECORDED, rebuilt(model_onnx=B), ("numpy 1 recorded, 2 installed",), "output 'y' differs", 1e-4)
    assert (done.verdict, done.reasons) == (Verdict.DIFFERENT, ("model.onnx: other bytes", "output 'y' differs"))
    assert done.environment == ("numpy 1 recorded, 2 installed",)


def test_metrics_beyond_tolerance_are_different_whatever_the_bytes_say() -> None:
    for files in ({}, {"model_onnx": B}):
        done = judge(RECORDED, rebuilt(facts(metrics={"auc": 0.7, "difference": 2e-7}), **files), (), None, 1e-4)
        assert done.verdict is Verdict.DIFFERENT
        assert done.reasons[-1] == "metric auc: recorded 0.75, rebuilt 0.7"


def test_what_registration_made_is_noted_and_compared_only_where_the_recipe_writes_it() -> None:
    recorded = RECORDED.model_copy(update={"files": {**RECORDED.files, "baseline.json": A}, "derived": ("baseline.json",)})
    done = judge(recorded, rebuilt(), (), None, 1e-4)
    assert (done.verdict, done.reasons) == (Verdict.IDENTICAL, ())
    assert done.files["baseline.json"] == "derived"
    assert done.notes == ("made at registration, and not by the recipe, so not compared: baseline.json",)
    assert judge(recorded, rebuilt(baseline_json=A), (), None, 1e-4).files["baseline.json"] == "same"
    differs = judge(recorded, rebuilt(baseline_json=B), (), "answers differ", 1e-4)
    assert (differs.verdict, differs.reasons[0]) == (Verdict.DIFFERENT, "baseline.json: other bytes")
    # one that a recipe once wrote is not excused
    stated = recorded.model_copy(update={"derived": ()})
    assert judge(stated, rebuilt(), (), None, 1e-4).verdict is Verdict.DIFFERENT


def test_a_file_that_was_not_written_is_different() -> None:
    done = judge(RECORDED, Rebuilt(FACTS, {"model.onnx": A}), (), None, 1e-4)
    assert (done.verdict, done.reasons) == (Verdict.DIFFERENT, ("golden.npz: the recipe did not write it",))
    assert done.files == {"model.onnx": "same", "golden.npz": "missing"}


def test_a_changed_input_forbids_any_comparison_and_is_named() -> None:
    for files in ({}, {"model_onnx": B}):
        done = judge(RECORDED, rebuilt(facts(seeds={"torch": 14}), **files), (), None, 1e-4)
        assert done.verdict is Verdict.NOT_REPRODUCIBLE
        assert done.reasons[0] == "seed torch: recorded 13, rebuilt 14"


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({}, []),
        ({"seeds": {}}, ["seed torch: recorded 13, rebuilt none"]),
        ({"seeds": {"torch": 13, "numpy": 1}}, ["seed numpy: recorded none, rebuilt 1"]),
        ({"hyperparameters": {"epochs": 6, "hidden": [128]}}, ["hyperparameter hidden: recorded [128, 64], rebuilt [128]"]),
        ({"data": None}, ["data: the recipe does not say what it read"]),
        (
            {
                "data": Data(
                    source="flights", digest="d2", rows=9, notes={"sha256 of a.csv": "2", "split": "by day", "new": "x"}
                )
            },
            [
                "data, digest: recorded d1, rebuilt d2",
                "data, rows: recorded 10, rebuilt 9",
                "data, sha256 of a.csv: recorded 1, rebuilt 2",
            ],
        ),
    ],
)
def test_changed_inputs(changes: dict[str, Any], texts: list[str]) -> None:
    assert changed_inputs(RECORDED, facts(**changes)) == texts


def test_data_that_was_not_recorded_is_not_compared() -> None:
    assert changed_inputs(facts(data=None), FACTS) == []


def test_metrics_that_are_missing_or_no_number_are_far() -> None:
    assert changed_metrics({"auc": 0.5}, {}, 1.0) == ["metric auc: recorded 0.5, rebuilt none"]
    assert changed_metrics({"auc": 0.5}, {"auc": float("nan")}, 1.0) == ["metric auc: recorded 0.5, rebuilt nan"]
    assert changed_metrics({"auc": 0.5}, {"auc": 0.5, "new": 3.0}, 0.0) == []


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(0, 1))
def test_tolerance_is_relative_and_absolute(recorded: float, again: float, tolerance: float) -> None:
    close = changed_metrics({"m": recorded}, {"m": again}, tolerance) == []
    assert close == (abs(again - recorded) <= tolerance + tolerance * abs(recorded))
    assert changed_metrics({"m": recorded}, {"m": recorded}, tolerance) == []


def test_environments_differ_in_words() -> None:
    assert environment_differences(HERE, HERE) == ()
    other = Environment(python="3.12.1", platform="Darwin", lock_digest=None, packages={"numpy": "2.4.1", "torch": "2.13.0"})
    assert environment_differences(HERE, other) == (
        "python 3.11.7 recorded, 3.12.1 here",
        "platform Linux recorded, Darwin here",
        f"lock digest {'c' * 64} recorded, none here",
        "numpy 2.1.0 recorded, 2.4.1 installed",
        "onnx 1.18 recorded, not installed",
        "torch not recorded, 2.13.0 installed",
    )
