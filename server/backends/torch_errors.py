"""What torch raises, in the words of the domain. Floor 2."""

from pathlib import Path

import torch

from server.backends.onnx_errors import is_fatal, reason
from server.core.errors import BackendDead, BackendFailed, DeviceLost, OutOfDeviceMemory


def failure(error: Exception, model: str, device: str, folder: Path) -> BackendFailed:
    """The error that a failed execution ends with; one of the domain's stays what it is."""
    if isinstance(error, BackendFailed):
        return error
    said = str(error) or type(error).__name__
    text = f"executing model '{model}' failed: {reason(said, folder)}"
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfDeviceMemory(text)
    if is_fatal(said):
        return BackendDead(text) if device == "cpu" else DeviceLost(text)
    return BackendFailed(text)
