"""Weights of a program file, onto their device. Floor 2."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from server.backends.onnx_errors import reason
from server.backends.pt2_archive import CONSTANTS, CONSTANTS_CONFIG, WEIGHTS, WEIGHTS_CONFIG, Pt2Archive
from server.backends.pt2_program import Program, Stored, read_stored
from server.core.errors import LoadFailed

_IMAGE = 4
"""Dimensions of the weights of a convolution over images."""


def load_weights(archive: Pt2Archive, program: Program, device: Any) -> dict[int, Any]:
    """Every weight of the program by its cell; weights that share a record share memory, as when they were saved.

    Raises: LoadFailed for records that are missing, too short, or do not fit the device.
    """
    listed: dict[bool, Mapping[str, Stored]] = {
        False: read_stored(archive.json(WEIGHTS_CONFIG), "weight_", f"record '{WEIGHTS_CONFIG}'"),
        True: read_stored(archive.json(CONSTANTS_CONFIG), "tensor_", f"record '{CONSTANTS_CONFIG}'"),
    }
    flat: dict[str, Any] = {}
    found = {}
    for weight in program.weights:
        stored = listed[weight.is_constant].get(weight.key)
        if stored is None:
            raise LoadFailed(f"the weight '{weight.key[:80]}' is not stored")
        record = f"{CONSTANTS if weight.is_constant else WEIGHTS}{stored.record}"
        if record not in flat:
            content = archive.tensor_bytes(record)
            raw = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
            try:
                flat[record] = raw.to(device)
            except Exception as error:  # what a full or broken device raises has no base of its own
                raise LoadFailed(f"record '{record}' does not go to the device: {reason(str(error), Path('/'))}") from error
        found[weight.cell] = _strided(flat[record], stored, record)
    return found


def _strided(raw: Any, stored: Stored, record: str) -> Any:
    dtype = getattr(torch, stored.type)
    held = raw.numel() // dtype.itemsize
    if stored.last_element() > held or _count(stored.sizes) > held or raw.numel() % dtype.itemsize:
        raise LoadFailed(f"record '{record}' has {raw.numel()} bytes, too few for {stored.type} {list(stored.sizes)[:8]}")
    return torch.as_strided(raw.view(dtype), stored.sizes, stored.strides, stored.offset)


def _count(sizes: tuple[int, ...]) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count


def rounded(weights: Mapping[int, Any], types: Mapping[Any, Any], *, channels_last: bool) -> dict[int, Any]:
    """Weights of other element types, and those of convolutions in the order that tensor cores read; equal ones once."""
    made: dict[tuple[Any, ...], Any] = {}

    def one(tensor: Any) -> Any:
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if key not in made:
            new = tensor.to(types.get(tensor.dtype, tensor.dtype))
            made[key] = new.contiguous(memory_format=torch.channels_last) if channels_last and new.dim() == _IMAGE else new
        return made[key]

    return {cell: one(tensor) for cell, tensor in weights.items()}
