"""The streams that sampled rows have, and their values. **Pure.**

Floor 4. Which stream a number or text belongs to is said once, here: counting, and making a baseline, read the same columns.

No streams of their own have: texts of several elements a row; tensors with free dimensions, whose elements are not the same
thing in every row (how many there are is no fact of a batch, whose rows are padded alike); tensors of more elements a row than
`max_elements`; and, of 16-bit unsigned arrays, those whose datatype `model.toml` does not state: BF16 travels in such arrays,
and counting bits as numbers would mean nothing.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_client.schema import DEFAULTED, Status
from server.core.settings import ModelSettings
from server.core.tensors import Array
from server.monitoring.samples import Samples
from server.monitoring.streams import Origin

Numbers = NDArray[np.float32] | NDArray[np.float64]

_NO_VALUE = np.array(
    [bool(status & DEFAULTED) or status in {Status.NULL, *range(Status.NOT_FOUND, DEFAULTED)} for status in range(256)]
)
"""By status: whether the store had no value, whatever stands in its place. A stale value is one."""
_NOT_TEXT = "\ufffd"
"""What the text of bytes that are not UTF-8 begins with; what begins with it anyway is written in the same way."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The streams of one tensor.

    Shapes: `values` `[N, K]`, views of the samples; `absent` `[N, K]`, where a feature has no value of its own, None where none
    is absent. `names` and `origins` of the K streams.
    """

    tensor: str
    names: tuple[str, ...]
    origins: tuple[Origin, ...]
    values: Array
    absent: NDArray[np.bool_] | None

    @property
    def are_texts(self) -> bool:
        """Whether there are no numbers in it."""
        return self.values.dtype.kind in "Ob"


class Reader:
    """Reads columns as one model's settings say.

    `free`: tensors known to have free dimensions beside those that the settings say so of.
    """

    def __init__(self, settings: ModelSettings, free: Collection[str] = ()) -> None:
        self._monitoring = settings.monitoring
        stated = {
            prefix + each.name: each for prefix, side in (("", settings.inputs), ("output:", settings.outputs)) for each in side
        }
        self._datatypes = {name: each.datatype for name, each in stated.items() if each.datatype is not None}
        self._free = {*free, *(name for name, each in stated.items() if each.pad_to or (each.shape and -1 in each.shape))}
        packed = () if settings.features is None else settings.features.inputs
        self._packed = {each.name: each.columns for each in packed}

    def ignored(self, stream: str) -> bool:
        """Whether a stream that a baseline has is not monitored any more."""
        tensor = self._tensor_of(stream)
        if tensor and tensor == self._monitoring.time_input:
            return True
        return not {stream, tensor, tensor.removeprefix("output:")}.isdisjoint(self._monitoring.ignore)

    def is_category(self, columns: Columns, index: int) -> bool:
        """Whether a column has categories: texts, booleans, and integers that the settings say are codes."""
        if columns.are_texts:
            return True
        listed = self._monitoring.categorical
        return columns.values.dtype.kind in "iu" and (columns.tensor in listed or columns.names[index] in listed)

    def read(self, samples: Samples) -> Iterator[Columns]:
        """Every tensor that has streams: inputs, then outputs."""
        for prefix, tensors in (("", samples.inputs), ("output:", samples.outputs)):
            for name, array in tensors.items():
                columns = self._columns(prefix + name, array, samples)
                if columns is not None:
                    yield columns

    def numbers(self, columns: Columns) -> Numbers:
        """A tensor's values as numbers that can be compared without loss: float32 where it holds them all, else float64.

        Shapes: `[N, K]`. Integers beyond 2**53 are rounded, in a baseline and in every window alike.
        """
        values: Any = columns.values
        if self._datatypes.get(columns.tensor) == "BF16":
            widened: NDArray[np.float32] = (values.astype(np.uint32) << 16).view(np.float32)
            return widened
        exact = np.float32 if np.can_cast(values.dtype, np.float32) else np.float64
        made: Numbers = values.astype(exact, copy=False)
        return made

    def _columns(self, tensor: str, array: Array, samples: Samples) -> Columns | None:
        size = prod(array.shape[1:])
        kind = array.dtype.kind
        if (
            tensor in self._free
            or not 0 < size <= self._monitoring.max_elements
            or (kind == "O" and size > 1)
            or (array.dtype == np.uint16 and tensor not in self._datatypes)
            or self.ignored(tensor)
        ):
            return None
        names = self._names(tensor, size)
        if tensor.startswith("output:"):
            output: Origin = "output"
            return Columns(tensor, names, (output,) * size, array.reshape(-1, size), None)
        places = {name: place for place, name in enumerate(samples.features)}
        # a feature of several elements is one input, and has one status
        found = [(column, places.get(name, places.get(tensor))) for column, name in enumerate(names)]
        origins: tuple[Origin, ...] = tuple("input" if place is None else "feature" for _, place in found)
        absent = None
        if "feature" in origins:
            absent = np.zeros((samples.rows, size), dtype=np.bool_)
            for column, place in found:
                if place is not None:
                    absent[:, column] = _NO_VALUE[samples.statuses[:, place]]
            absent = absent if absent.any() else None
        return Columns(tensor, names, origins, array.reshape(-1, size), absent)

    def _names(self, tensor: str, size: int) -> tuple[str, ...]:
        columns = self._packed.get(tensor)
        if columns is not None and len(columns) == size:
            return columns
        return (tensor,) if size == 1 else tuple(f"{tensor}[{index}]" for index in range(size))

    def _tensor_of(self, stream: str) -> str:
        for tensor, columns in self._packed.items():
            if stream in columns:
                return tensor
        name, bracket, index = stream.rpartition("[")
        return name if bracket and index[:-1].isdecimal() and index[-1] == "]" else stream


def tally(columns: Columns, index: int) -> tuple[dict[str, int], int]:
    """How often each category is in one column, and how many rows have none: features without a value, and empty texts."""
    values: Any = columns.values[:, index]
    rows = len(values)
    if columns.absent is not None:
        values = values[~columns.absent[:, index]]
    if values.dtype == object:
        return _texts(values, rows)
    found, counts = np.unique(values, return_counts=True)
    return {str(int(value)): count for value, count in zip(found, counts.tolist(), strict=True)}, rows - len(values)


def _texts(values: NDArray[np.object_], rows: int) -> tuple[dict[str, int], int]:
    made: dict[str, int] = {}
    for element, count in Counter(values.tolist()).items():
        if element:
            text = text_of(element if isinstance(element, bytes) else str(element).encode())
            made[text] = made.get(text, 0) + count
    return made, rows - sum(made.values())


def text_of(data: bytes) -> str:
    """Bytes as a text that can be printed, stored and sent; different bytes have different texts.

    >>> text_of("é".encode()), text_of(bytes([0xE9]))
    ('é', '\\ufffde9')
    """
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return _NOT_TEXT + data.hex()
    return _NOT_TEXT + data.hex() if text.startswith(_NOT_TEXT) else text
