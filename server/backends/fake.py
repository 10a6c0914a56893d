"""A model that takes exactly as long as it is told to, and answers so that a test can see whose row came back. Floor 2.

For measuring the server without a model, and for simulating an accelerator on a machine without one. Opens `fake.json` of a
version's folder: `{"inputs": [{"name", "datatype", "shape"}], "outputs": [...]}`, shapes without the batch dimension (with
`max_batch = 0`: full shapes). Never draws a random number; fails where a request asks for a negative number of answers, or
its rows for different ones.

The answer of a row depends on that row alone:
- an output whose name ends in the name of an input of its datatype and shape repeats it (`echo_x` and `x` repeat `x`; the
  longest such name wins);
- any other output holds the row's checksum in all its elements, see `row_checksums` and `from_checksum`.

A decoupled version gives that answer as often as its request or its settings say, each after the calibrated time.
With `device = "accelerator"` versions share a device that works by itself, as a GPU does: see `fake_accelerator`.
"""

import json
import select
import time
import zlib
from collections.abc import Callable, Generator, Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from server.backends.base import LoadTask
from server.backends.fake_accelerator import Work, accelerator
from server.core.clock import NS_PER_S, NS_PER_US, Clock, monotonic_ns
from server.core.errors import BackendFailed, LoadFailed, RegistryError
from server.core.measured import parse_measured, table_us
from server.core.placement import FAKE
from server.core.settings import DEFAULT_MAX_BATCH, FakeSettings, ModelSettings, TensorSettings
from server.core.signature import Signature
from server.core.tensors import NUMPY_DTYPES, Array, Shapes, TensorSpec, plain_arrays

FILE = "fake.json"

_SPIN_NS = 100 * NS_PER_US
"""A sleep ends late by the timer's slack (50 us on Linux) and the scheduler's whim; this much of the end is spun."""
_COUNTING = ("INT32", "INT64")
_EXACT_VALUES = {"FP16": 2**11, "BF16": 2**8, "FP32": 2**24}
"""How many whole numbers from 0 on a float can tell apart: checksums are taken modulo that."""


class _FakeFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: tuple[TensorSettings, ...]
    outputs: tuple[TensorSettings, ...]


def open_backend(task: LoadTask) -> "FakeBackend":
    """Open `fake.json`. Raises: LoadFailed where it is missing, is not JSON, or does not describe tensors."""
    signature, settings = _read_signature(task), _with_measured(task)
    counting = settings.responses_input
    if counting and (counting not in signature.input_names or signature.input_names[counting].datatype not in _COUNTING):
        raise LoadFailed(f"fake.responses_input is '{counting}', which is no input of datatype {' or '.join(_COUNTING)}")
    if settings.device == "accelerator":
        return AcceleratedFake(signature, settings)
    return FakeBackend(signature, settings)


class FakeBackend:
    """A calibrated stand-in for a model.

    Accuracy (2 shared cores, 300 calls each of 50 us to 5 ms, 2026-11-21): 1 us late at the median, 9 to 55 us at p99; the
    answers of 64 rows of 16 floats take 13 us, the least a call can be told to take.
    """

    platform = "fake"
    device = "cpu"

    def __init__(
        self,
        signature: Signature,
        settings: FakeSettings,
        clock: Clock = monotonic_ns,
        sleep_s: Callable[[float], None] = time.sleep,
    ) -> None:
        self.signature = signature
        self._settings = settings
        self._clock = clock
        self._sleep_s = sleep_s
        self._echoed = {spec.name: _echoed(spec, signature) for spec in signature.outputs}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`. Returns when the calibrated time has passed since the call, or as soon as it has its answers."""
        begun = self._clock()
        outputs = self.answers(inputs)
        self.rest(begun + round(tau_us(self.rows(inputs), self._settings) * NS_PER_US))
        return outputs

    def rows(self, inputs: Mapping[str, Array]) -> int:
        """How many rows a batch has; 1 without batching."""
        return next(iter(inputs.values())).shape[0] if self.signature.max_batch and inputs else 1

    def answers(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What a batch is answered with, as soon as that is computed."""
        batching = self.signature.max_batch > 0
        rows = self.rows(inputs)
        checksums = row_checksums(self.signature, inputs, rows)
        outputs: dict[str, Array] = {}
        for spec in self.signature.outputs:
            echoed = self._echoed[spec.name]
            if echoed in inputs:
                outputs[spec.name] = inputs[echoed].copy()
                continue
            shape = tuple(1 if dim == -1 else dim for dim in spec.shape)
            column = from_checksum(spec.datatype, checksums).reshape(rows, *(1 for _ in shape))
            answer = np.broadcast_to(column, (rows, *shape)).copy()
            outputs[spec.name] = answer if batching else answer[0]
        return outputs

    def stream(self, inputs: Mapping[str, Array]) -> Generator[dict[str, Array], None, None]:
        """See `DecoupledBackend.stream`. Every answer is the one that `run` gives. Raises: BackendFailed."""
        for _ in range(self._responses(inputs)):
            yield self.run(inputs)

    def memory_bytes(self) -> int:
        """Nothing worth counting."""
        return 0

    def close(self) -> None:
        """There is nothing to give back."""

    def _responses(self, inputs: Mapping[str, Array]) -> int:
        asked = inputs.get(self._settings.responses_input)
        if asked is None:
            return self._settings.responses
        numbers = set(asked.reshape(-1).tolist())
        if len(numbers) != 1 or min(numbers) < 0:
            raise BackendFailed(
                f"input '{self._settings.responses_input}' must say one number of answers, 0 or more, not {sorted(numbers)[:5]}"
            )
        return int(numbers.pop())

    def rest(self, until_ns: int) -> None:
        """Sleep, then spin, until a moment.

        The spin must let go of the interpreter's lock, as a real backend does: a select that waits for nothing does so in
        a microsecond, a sleep of 0 only after the timer's slack.
        """
        left_ns = until_ns - self._clock()
        if left_ns > _SPIN_NS:
            self._sleep_s((left_ns - _SPIN_NS) / NS_PER_S)
        while self._clock() < until_ns:
            select.select((), (), (), 0)


class AcceleratedFake(FakeBackend):
    """A version on a device that works by itself; see `fake_accelerator.Accelerator`."""

    def __init__(self, signature: Signature, settings: FakeSettings) -> None:
        super().__init__(signature, settings)
        self.device = f"{FAKE}:{settings.device_id}"
        self._accelerator = accelerator(settings.device_id, settings.device_bytes)
        self._accelerator.load(settings.weights_bytes)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`."""
        pending = self.begin(inputs)
        pending.wait()
        return pending.outputs()

    def arrays(self, shapes: Shapes) -> dict[str, Array]:
        """See `PipelinedBackend.arrays`: any memory will do."""
        return plain_arrays(shapes)

    def begin(self, inputs: Mapping[str, Array]) -> Work:
        """See `PipelinedBackend.begin`."""
        rows, settings = self.rows(inputs), self._settings
        kills = bool(np.any(inputs[settings.kills_input])) if settings.kills_input in inputs else False
        answers = self.answers(inputs)
        took_ns = round(tau_us(rows, settings) * NS_PER_US)
        return self._accelerator.begin(answers, took_ns, rows * settings.row_bytes, self.rest, kills=kills)

    def memory_bytes(self) -> int:
        """What it was told to hold."""
        return self._settings.weights_bytes

    def close(self) -> None:
        """Give the device its memory back."""
        self._accelerator.unload(self._settings.weights_bytes)


def tau_us(rows: int, settings: FakeSettings) -> float:
    """Microseconds that a batch takes.

    With a table: straight lines between its entries, the last line goes on above them, the first entry holds below.

    >>> settings = FakeSettings(table_us={1: 100.0, 8: 170.0, 16: 330.0})
    >>> [tau_us(rows, settings) for rows in (1, 4, 8, 20)]
    [100.0, 130.0, 170.0, 410.0]
    """
    table = sorted(settings.table_us.items())
    if not table:
        return settings.t0_us + settings.row_us * rows
    if rows in settings.table_us:
        return settings.table_us[rows]
    if rows < table[0][0] or len(table) == 1:
        return table[0][1]
    segments = list(pairwise(table))
    (low, low_us), (high, high_us) = next((pair for pair in segments if rows < pair[1][0]), segments[-1])
    return max(0.0, low_us + (high_us - low_us) * (rows - low) / (high - low))


def row_checksums(signature: Signature, inputs: Mapping[str, Array], rows: int) -> NDArray[np.uint32]:
    """One number per row, of all bytes of its inputs in the signature's order.

    A 32-bit weighted sum (weights are odd powers, so every byte and its place count), taken for all rows at once: a loop
    over rows would cost more than the time it is to imitate. BYTES elements enter by their CRC-32.

    Shapes: `[rows]`. A model without batching has one row: everything.
    """
    total = np.zeros(rows, dtype=np.uint32)
    for spec in signature.inputs:
        array = inputs.get(spec.name)
        if array is None:
            continue
        if array.dtype == object:
            array = np.array([zlib.crc32(item) for item in array.reshape(-1).tolist()], dtype=np.uint32).reshape(array.shape)
        flat = np.ascontiguousarray(array).reshape(rows, -1).view(np.uint8).astype(np.uint32)
        weights = np.cumprod(np.full(flat.shape[1], 0x01000193, dtype=np.uint32), dtype=np.uint32)
        total = total * np.uint32(31) + flat @ weights
    return total


def from_checksum(datatype: str, checksums: NDArray[np.uint32]) -> Array:
    """Checksums as elements of a datatype: integers wrap, floats keep what they can tell apart, BYTES are digits."""
    if datatype == "BYTES":
        texts = np.empty(checksums.shape, dtype=object)
        texts[:] = [str(number).encode() for number in checksums.tolist()]
        return texts
    if datatype == "BOOL":
        return (checksums % 2).astype(np.bool_)
    if datatype == "BF16":
        return ((checksums % _EXACT_VALUES["BF16"]).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if datatype in _EXACT_VALUES:
        return (checksums % _EXACT_VALUES[datatype]).astype(NUMPY_DTYPES[datatype])
    return checksums.astype(NUMPY_DTYPES[datatype])


def _with_measured(task: LoadTask) -> FakeSettings:
    """The settings, with the table of the document that they name. A path is relative to the model's folder."""
    settings: FakeSettings = task.settings.fake
    if not settings.measured:
        return settings
    try:
        table = table_us(parse_measured((task.folder.parent / settings.measured).read_bytes()))
    except OSError as error:
        raise LoadFailed(f"fake.measured '{settings.measured}' cannot be read: {error.strerror}") from error
    except RegistryError as error:
        raise LoadFailed(f"fake.measured '{settings.measured}': {error}") from error
    if not table:
        raise LoadFailed(
            f"fake.measured '{settings.measured}' holds no times: no sample of that version ran when it was loaded"
        )
    return settings.model_copy(update={"table_us": table})


def _echoed(output: TensorSpec, signature: Signature) -> str:
    """The input an output repeats, or ""."""
    alike = [
        spec.name
        for spec in signature.inputs
        if output.name.endswith(spec.name) and (spec.datatype, spec.shape) == (output.datatype, output.shape)
    ]
    return max(alike, key=len, default="")


def _read_signature(task: LoadTask) -> Signature:
    try:
        stated = _FakeFile.model_validate(json.loads((task.folder / FILE).read_bytes()))
    except FileNotFoundError:
        raise LoadFailed(f"{FILE} is missing from the version's folder") from None
    except (OSError, ValueError) as error:
        detail = error.errors()[0] if isinstance(error, ValidationError) else None
        text = f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" if detail else str(error)
        raise LoadFailed(f"{FILE}: {text}") from error
    settings: ModelSettings = task.settings
    for kind, tensors, overrides in (
        ("input", stated.inputs, settings.inputs),
        ("output", stated.outputs, settings.outputs),
    ):
        names = [tensor.name for tensor in tensors]
        for override in overrides:
            if override.name not in names:
                raise LoadFailed(f"model.toml states {kind} '{override.name}', but {FILE} has the {kind}s {names}")
    if any(tensor.labels is not None for tensor in (*stated.inputs, *stated.outputs)):
        raise LoadFailed(f"{FILE}: labels belong into model.toml")
    if any(tensor.pad_to for tensor in (*stated.inputs, *stated.outputs)):
        raise LoadFailed(f"{FILE}: pad_to belongs into model.toml")
    max_batch = DEFAULT_MAX_BATCH if settings.max_batch is None else settings.max_batch
    return Signature(
        task.key.model,
        tuple(_spec(tensor, settings.inputs) for tensor in stated.inputs),
        tuple(_spec(tensor, settings.outputs) for tensor in stated.outputs),
        max_batch,
    )


def _spec(tensor: TensorSettings, overrides: tuple[TensorSettings, ...]) -> TensorSpec:
    """The settings' words win over the file's: there is no model behind it that they could contradict."""
    override = next((other for other in overrides if other.name == tensor.name), tensor)
    datatype = override.datatype or tensor.datatype
    shape = tensor.shape if override.shape is None else override.shape
    if datatype is None or shape is None:
        raise LoadFailed(f"{FILE}: tensor '{tensor.name}' needs a datatype and a shape")
    return TensorSpec(tensor.name, datatype, shape, tensor.optional or override.optional)
