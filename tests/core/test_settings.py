import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from server.core import settings as module
from server.core.settings import (
    DEFAULT_MAX_BATCH,
    STANDARD_BUCKETS,
    BatchingSettings,
    ModelSettings,
    ServerSettings,
    buckets_for,
)

TABLES = [
    value
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, BaseModel) and value.__module__ == module.__name__
]


def model(**values: Any) -> ModelSettings:
    return ModelSettings.model_validate(values)


@pytest.mark.parametrize("table", TABLES)
def test_every_table_refuses_what_it_does_not_know(table: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        table.model_validate({"max_bacth": 1})


@pytest.mark.parametrize("table", [table for table in TABLES if table.model_fields])
def test_every_table_is_frozen(table: type[BaseModel]) -> None:
    field = next(iter(table.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(table.model_construct(), field, None)


def test_a_model_needs_no_settings_and_a_server_only_its_repository() -> None:
    assert model() == ModelSettings()
    assert ServerSettings(repository="models").grpc_address == "127.0.0.1:8001"
    with pytest.raises(ValidationError, match="repository"):
        ServerSettings.model_validate({})


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"inputs": [{"name": "x", "datatype": "FLOAT"}]}, "unknown datatype 'FLOAT'; one of BOOL, UINT8"),
        ({"inputs": [{"name": "x", "shape": [0]}]}, "dimensions of 'x' must be positive, or -1 for one that varies"),
        ({"outputs": [{"name": "y", "shape": [4, -2]}]}, "dimensions of 'y' must be positive, or -1 for one that varies"),
        ({"batching": {"buckets": [4, 2]}}, "buckets must be ascending and distinct"),
        ({"batching": {"buckets": [2, 2]}}, "buckets must be ascending and distinct"),
        ({"batching": {"buckets": [1, 65]}}, "buckets must not exceed max_batch, which is 64"),
        ({"max_batch": 0, "batching": {"buckets": [1]}}, "buckets must not exceed max_batch, which is 0"),
        ({"batching": {"buckets": [0, 2]}}, "greater than 0"),
        ({"queue": {"priority_levels": 2, "default_priority": 3}}, "default_priority must"),
        ({"versions": {"policy": "specific"}}, "'specific' lists versions exactly when policy is"),
        ({"fake": {"measured": "m.json", "table_us": {"1": 2.0}}}, "'measured' names a table that would replace 'table_us'"),
        ({"versions": {"policy": "all", "specific": [1]}}, "'specific' lists versions exactly when policy is"),
        ({"fake": {"t0_us": math.inf}}, "finite number"),
        ({"fake": {"table_us": {1: math.nan}}}, "finite number"),
        ({"inputs": [{"name": "x", "labels": "x.txt"}]}, "labels are for outputs"),
        ({"inputs": [{"name": "x", "pad_to": [8, 4]}]}, "pad_to of 'x' must be ascending and distinct"),
        ({"inputs": [{"name": "x", "pad_to": [4, 4]}]}, "pad_to of 'x' must be ascending and distinct"),
        ({"inputs": [{"name": "x", "pad_to": [0, 4]}]}, "greater than 0"),
        ({"inputs": [{"name": "x", "pad_value": 1}]}, "pad_value of 'x' needs pad_to"),
        ({"outputs": [{"name": "y", "pad_to": [4]}]}, "pad_to is for inputs"),
        ({"outputs": [{"name": "y", "labels": "../y.txt"}]}, "labels of 'y' must be a plain relative path"),
        ({"outputs": [{"name": "y", "labels": "/y.txt"}]}, "labels of 'y' must be a plain relative path"),
        ({"outputs": [{"name": "y", "labels": ""}]}, "labels of 'y' must be a plain relative path"),
        ({"max_batch": -1}, "greater than or equal to 0"),
        ({"backend": "tensorflow"}, "'onnx', 'torch', 'text' or 'fake'"),
        ({"text": {"token_buckets": []}}, "token_buckets must be ascending and distinct, and there must be one"),
        ({"text": {"token_buckets": [32, 16]}}, "token_buckets must be ascending and distinct, and there must be one"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_reason(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        model(**values)


def test_what_can_be_meant_is_kept() -> None:
    made = model(
        inputs=[{"name": "x", "datatype": "BF16", "shape": [-1, 4], "optional": True}],
        outputs=[{"name": "y", "labels": "names/of y.txt"}],
        batching={"buckets": [2, 8]},
        queue={"priority_levels": 3, "default_priority": 3},
        versions={"policy": "specific", "specific": [3, 1]},
    )
    assert made.inputs[0].shape == (-1, 4)
    assert made.batching.buckets == (2, 8)
    assert made.versions is not None
    assert made.versions.specific == (3, 1)


def test_a_model_that_does_not_batch_has_one_bucket() -> None:
    assert buckets_for(0, BatchingSettings(buckets=(4,))) == (1,)


def test_default_buckets() -> None:
    assert buckets_for(DEFAULT_MAX_BATCH, BatchingSettings()) == (1, 2, 4, 8, 16, 32, 48, 64)
    assert buckets_for(1000, BatchingSettings()) == (*STANDARD_BUCKETS, 512, 768, 1000)


@given(st.integers(1, 65_536), st.sets(st.integers(1, 65_536), max_size=6))
def test_the_largest_bucket_is_the_largest_batch(max_batch: int, chosen: set[int]) -> None:
    buckets = buckets_for(max_batch, BatchingSettings(buckets=tuple(sorted(chosen))))
    assert buckets[-1] == max_batch
    assert list(buckets) == sorted(set(buckets))
    assert set(buckets) - {max_batch} <= (chosen or set(range(1, max_batch)))


@pytest.mark.parametrize(
    ("trace", "problem"),
    [
        ({"level": ["TIMESTAMPS"]}, "mode 'triton' writes to 'file', which is not stated"),
        ({"level": ["TIMESTAMPS"], "file": "f", "rate": 0}, "needs mode 'opentelemetry'"),
        ({"level": ["TENSORS"], "mode": "opentelemetry"}, "has no level TENSORS"),
        ({"level": ["OFF"]}, "TIMESTAMPS"),
        ({"count": -2}, "greater than or equal to -1"),
        ({"rate": 2**32}, "less than 4294967296"),
        ({"buffer_traces": 0}, "greater than 0"),
    ],
)
def test_tracing_that_could_not_work_is_refused(trace: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        ServerSettings.model_validate({"repository": "models", "trace": trace})


def test_tracing_that_can_work() -> None:
    for trace in (
        {},
        {"rate": 0},
        {"level": ["TENSORS"], "file": "f"},
        {"level": ["TIMESTAMPS"], "mode": "opentelemetry", "rate": 0},
    ):
        assert ServerSettings.model_validate({"repository": "models", "trace": trace}).trace.mode in ("triton", "opentelemetry")
