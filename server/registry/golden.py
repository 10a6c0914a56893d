"""Golden examples of a version: inputs, and the outputs they must give (`golden.npz`).

Floor 2: reads and writes one file; `gates` compares. Never unpickles: BYTES tensors are stored in their wire form as
uint8, and a JSON index holds the tensor names, so that a name may be anything.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from server.core.errors import PodiumError, RegistryError
from server.core.tensors import NUMPY_DTYPES, Array, element_count, join_bytes, split_bytes
from server.registry.durable import write_atomically

GOLDEN_FILE = "golden.npz"

_INDEX = "index"
_STORABLE = frozenset(NUMPY_DTYPES.values())


@dataclass(frozen=True, slots=True)
class GoldenExamples:
    """Inputs of one run and the outputs it gave, by tensor name. Shapes: as the backend takes and gives them."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]


def save_golden(path: Path, inputs: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """Write golden examples atomically; the same examples give the same bytes.

    Raises: RegistryError for an array that no tensor of the protocol can be, or where there is no output to expect.
    """
    if not expected:
        raise RegistryError("golden examples need at least one expected output")
    arrays: dict[str, Array] = {}
    index: dict[str, list[dict[str, Any]]] = {}
    for side, tensors in (("inputs", inputs), ("outputs", expected)):
        index[side] = []
        for number, (name, array) in enumerate(tensors.items()):
            if array.dtype not in _STORABLE:
                raise RegistryError(f"golden {side}: '{name}' has dtype {array.dtype}, which is no datatype of the protocol")
            entry: dict[str, Any] = {"name": name}
            stored: Array = array
            if array.dtype == object:
                entry["bytes_shape"] = list(array.shape)
                stored = np.frombuffer(join_bytes(array), np.uint8)  # type: ignore[arg-type] # the dtype was just checked
            arrays[f"{side}_{number}"] = stored
            index[side].append(entry)
    arrays[_INDEX] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_atomically(path, buffer.getvalue())


def load_golden(path: Path) -> GoldenExamples:
    """Read what `save_golden` wrote.

    Raises: RegistryError for any other file, saying which and why.
    """
    try:
        # read here, because numpy leaves a file open when it turns out to be no archive
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            index = json.loads(stored[_INDEX].tobytes())
            sides = {
                side: {
                    entry["name"]: _restored(stored[f"{side}_{number}"], entry.get("bytes_shape"))
                    for number, entry in enumerate(index[side])
                }
                for side in ("inputs", "outputs")
            }
    # what a damaged or foreign file makes zipfile, json and numpy raise
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, AttributeError, BadZipFile, PodiumError) as error:
        raise RegistryError(f"{path.name}: not golden examples: {error}") from None
    return GoldenExamples(sides["inputs"], sides["outputs"])


def _restored(stored: Array, bytes_shape: list[int] | None) -> Array:
    if bytes_shape is None:
        return stored
    count = element_count(bytes_shape)
    flat = np.empty(count, dtype=object)
    flat[:] = split_bytes(stored.tobytes(), count)
    return flat.reshape(bytes_shape)
