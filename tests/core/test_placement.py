import pytest

from server.core.placement import device_of, stated_bytes
from server.core.settings import ModelSettings


@pytest.mark.parametrize(
    ("backend", "settings", "device"),
    [
        ("onnx", {}, "cpu"),
        ("onnx", {"onnx": {"providers": ["tensorrt", "cuda"], "device_id": 2}}, "cuda:2"),
        ("onnx", {"onnx": {"providers": ["cpu", "cuda"], "device_id": 2}}, "cpu"),
        ("torch", {"onnx": {"providers": ["cuda"]}}, "cpu"),
        ("torch", {"torch": {"device": "cuda", "device_id": 3}}, "cuda:3"),
        ("fake", {}, "cpu"),
        ("fake", {"fake": {"device": "accelerator", "device_id": 1}}, "fake:1"),
    ],
)
def test_settings_say_where_a_version_goes(backend: str, settings: dict[str, object], device: str) -> None:
    assert device_of(backend, ModelSettings.model_validate(settings)) == device


def test_only_a_fake_device_is_known_by_what_settings_say() -> None:
    settings = ModelSettings.model_validate({"fake": {"device": "accelerator", "device_bytes": 77}})
    assert stated_bytes("fake:0", settings) == 77
    assert stated_bytes("cpu", settings) is None
    assert stated_bytes("cuda:0", settings) is None
