import tomllib
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from server.core.errors import RegistryError
from server.core.measured import (
    Measured,
    document_name,
    fake_toml,
    measured_bytes,
    parse_measured,
    settings_digest,
    table_us,
)
from server.core.settings import ModelSettings


def measured(**other: Any) -> Measured:
    fields: dict[str, Any] = {
        "model": "m",
        "version": 3,
        "measured_at": datetime(2026, 11, 21, 12, 30, tzinfo=UTC),
        "device_kind": "NVIDIA H200",
        "backend": "onnx",
        "platform": "onnxruntime_onnx",
        "libraries": {"onnxruntime": "1.0"},
        "files": "a" * 64,
        "settings": "b" * 64,
        "memory_bytes": 1000,
        "costs_ns": {8: 170_500, 1: 100_000},
    }
    return Measured(**fields | other)


def test_a_document_comes_back_as_it_was_written() -> None:
    for one in (measured(), measured(memory_bytes=None), measured(costs_ns={})):
        assert parse_measured(measured_bytes(one)) == one


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"{", "JSON"),
        (measured_bytes(measured()).replace(b'"model"', b'"mode"'), "model: Field required"),
        (measured_bytes(measured()).replace(b"100000", b"-5"), "costs_ns.1: Input should be greater than 0"),
        (measured_bytes(measured()).replace(b'"schema_version": 1', b'"schema_version": 2'), "schema_version: "),
    ],
)
def test_what_is_no_document_is_told_by_its_first_fault(text: bytes, fault: str) -> None:
    with pytest.raises(RegistryError, match=fault):
        parse_measured(text)


def test_a_document_says_something() -> None:
    with pytest.raises(ValidationError, match="nothing was measured"):
        measured(memory_bytes=None, costs_ns={})


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H200", "NVIDIA-H200.onnx.json"),
        ("Some(R) CPU @ 2.50GHz x2", "Some-R-CPU-2.50GHz-x2.onnx.json"),
        ("../../etc", "etc.onnx.json"),
        ("é", "device.onnx.json"),
        ("x" * 300, "x" * 100 + ".onnx.json"),
    ],
)
def test_documents_have_plain_names(kind: str, name: str) -> None:
    assert document_name(kind, "onnx") == name


def test_only_settings_that_decide_anything_are_in_the_digest() -> None:
    def digest(backend: str = "onnx", **settings: Any) -> str:
        return settings_digest(backend, ModelSettings.model_validate(settings))

    assert digest() == digest(queue={"max_requests": 3}, torch={"intra_op_threads": 3}, load_retries=2)
    changes: list[dict[str, Any]] = [
        {"backend": "torch"},
        {"instances": 2},
        {"max_batch": 3},
        {"onnx": {"intra_op_threads": 3}},
        {"batching": {"buckets": [1, 5]}},
    ]
    assert len({digest(), *(digest(**change) for change in changes)}) == len(changes) + 1


def test_times_become_a_table_of_the_fake_backend() -> None:
    assert list(table_us(measured()).items()) == [(1, 100.0), (8, 170.5)]
    text = fake_toml(measured(device_kind="odd\nkind"))
    assert text.startswith("# m:3 on odd?kind, 2026-11-21\n[fake]\n")
    assert ModelSettings.model_validate(tomllib.loads(text)).fake.table_us == {1: 100.0, 8: 170.5}
