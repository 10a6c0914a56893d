"""Which device a version goes to."""

from typing import Any

import pytest

from server.core.placement import device_of
from server.core.settings import ModelSettings


@pytest.mark.parametrize(
    ("backend", "settings", "device"),
    [
        ("onnx", {}, "cpu"),
        ("onnx", {"onnx": {"providers": ["cpu"], "device_id": 3}}, "cpu"),
        ("onnx", {"onnx": {"providers": ["tensorrt", "cuda"], "device_id": 3}}, "cuda:3"),
        ("torch", {}, "cpu"),
        ("torch", {"torch": {"device": "cuda", "device_id": 1}}, "cuda:1"),
        ("fake", {"torch": {"device": "cuda"}}, "cpu"),
        ("fake", {"fake": {"device": "accelerator", "device_id": 2}}, "fake:2"),
    ],
)
def test_a_backend_goes_where_its_own_settings_say(backend: str, settings: dict[str, Any], device: str) -> None:
    assert device_of(backend, ModelSettings.model_validate(settings)) == device
