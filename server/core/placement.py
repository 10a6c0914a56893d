"""Which device a version goes to, by its settings alone: known before anything of it is opened. **Pure.**

Floor 1: the backends that open it there and the lifecycle that keeps the devices' books ask the same function. Never asks
whether the device exists.
"""

from server.core.settings import ModelSettings

CPU = "cpu"
CUDA = "cuda"
FAKE = "fake"
"""What names of devices begin with; all but the CPU's end in `:` and a number."""


def device_of(backend: str, settings: ModelSettings) -> str:
    """The device of a version that `backend` executes.

    >>> device_of("onnx", ModelSettings.model_validate({"onnx": {"providers": ["cuda", "cpu"], "device_id": 1}}))
    'cuda:1'
    """
    match backend:
        case "onnx":
            first = (*settings.onnx.providers, CPU)[0]
            return CPU if first == CPU else f"{CUDA}:{settings.onnx.device_id}"
        case "torch":
            return CPU if settings.torch.device == CPU else f"{CUDA}:{settings.torch.device_id}"
        case _:
            return CPU if settings.fake.device == CPU else f"{FAKE}:{settings.fake.device_id}"


def stated_bytes(device: str, settings: ModelSettings) -> int | None:
    """All the memory of a device that is not there before the first version is on it; None for one that can be asked."""
    return settings.fake.device_bytes if device.startswith(f"{FAKE}:") else None
