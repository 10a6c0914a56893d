"""Versions that take texts: `tokenizer.json` beside the model file. Floor 2.

Tokenizes a batch, executes it in microbatches of like length on the backend of the model file, and gives each row its answer
back. What is executed only to fill them is counted. Never imports what executes: the roof hands it in.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np

from server.backends.base import Backend, BackendFactory, LoadTask, Pending, PipelinedBackend
from server.backends.microbatches import Microbatch, microbatches, padding
from server.backends.text_pipeline import Batches
from server.backends.text_tokens import FILE, Tokens
from server.core.errors import BackendDead, BackendFailed, LoadFailed
from server.core.settings import buckets_for
from server.core.signature import Signature
from server.core.tensors import NUMPY_DTYPES, Array, Shapes, TensorSpec

INPUT = "text"
IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
_MODEL_FILES = {"model.onnx": "onnx", "program.pt2": "torch"}
_DATATYPES = ("INT64", "INT32")


@dataclass(frozen=True, slots=True)
class _Cut:
    """A batch in microbatches. `encodings` and `lengths` by the places of its rows."""

    encodings: Sequence[Any]
    lengths: tuple[int, ...]
    parts: list[Microbatch]


def open_backend(task: LoadTask, factory: Callable[[str], BackendFactory]) -> "TextBackend":
    """Open `tokenizer.json` and the model file beside it.

    `factory` gives the factory of "onnx" or "torch". Raises: LoadFailed.
    """
    settings = task.settings
    if settings.inputs:
        raise LoadFailed(f"model.toml states inputs; a version with {FILE} has one, '{INPUT}', and it is always the same")
    texts = settings.text
    tokens = Tokens(task.folder / FILE, texts.max_tokens, texts.token_buckets[-1], texts.max_bytes)
    name = _inner_backend(task)
    inner = factory(name)(LoadTask(task.key, task.folder, settings.model_copy(update={"backend": name})))
    try:
        buckets = _token_buckets(inner.signature, texts.token_buckets, tokens.most)
        rows = buckets_for(inner.signature.max_batch, settings.batching)
        kind = PipelinedText if callable(getattr(inner, "begin", None)) else TextBackend
        return kind(inner, tokens, buckets, rows)
    except BaseException:
        inner.close()
        raise


class TextBackend:
    """A model of token ids behind the face of one of texts. `run` is for one thread at a time."""

    platform = "text"
    pads_rows = True
    """Microbatches are filled up to row buckets here: rows added before that would be tokenized and executed for nobody."""

    def __init__(self, inner: Backend, tokens: Tokens, token_buckets: Sequence[int], row_buckets: Sequence[int]) -> None:
        """Units: buckets ascending, of tokens and of rows; the last row bucket is the inner backend's largest batch."""
        whole = inner.signature
        text = TensorSpec(INPUT, "BYTES", (1,))
        self.signature = Signature(whole.model, (text,), whole.outputs, whole.max_batch)
        self.device = inner.device
        self._inner = inner
        self._tokens = tokens
        self._token_buckets = tuple(token_buckets)
        self._row_buckets = tuple(row_buckets)
        self._types = {spec.name: NUMPY_DTYPES[spec.datatype] for spec in whole.inputs}
        self._counted = threading.local()
        # what is got ready for batches learns so which lengths there will be
        inner.signature = replace(whole, inputs=tuple(self._padded(spec) for spec in whole.inputs))

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`. Raises: InputsUnfit also for a text that is no UTF-8."""
        cut = self._cut(inputs)
        outputs: dict[str, Array] = {}
        for each in cut.parts:
            put(outputs, each, self._inner.run(self._filled(cut, each, plain)), len(cut.lengths))
        return outputs

    def take_elements(self) -> tuple[int, int]:
        """Tokens of the texts that the calling thread brought since it last asked, and tokens executed beside them only to fill
        up: an engine asks after its batch, and the warm-up is nobody's."""
        taken: tuple[int, int] = getattr(self._counted, "elements", (0, 0))
        self._counted.elements = (0, 0)
        return taken

    def prepare(self, buckets: Sequence[int]) -> None:
        """See `PreparedBackend`. Runs every token bucket once, so that one that the model does not take is found by the load.

        Raises: LoadFailed, BackendDead.
        """
        getattr(self._inner, "prepare", _nothing)(self._row_buckets)
        for tokens in self._token_buckets:
            for rows in self._worth_trying():
                try:
                    self._inner.run(self._ones(rows, tokens))
                except BackendDead:
                    raise
                except BackendFailed as error:
                    raise LoadFailed(f"{rows} rows of {tokens} tokens do not run: {error}") from error

    def notes(self) -> tuple[str, ...]:
        """See `PreparedBackend`: the model's."""
        told: tuple[str, ...] = getattr(self._inner, "notes", tuple)()
        return told

    def memory_bytes(self) -> int:
        """The model's; a tokenizer holds few megabytes."""
        return self._inner.memory_bytes()

    def close(self) -> None:
        """Close the backend of the model file."""
        self._inner.close()

    def _padded(self, spec: TensorSpec) -> TensorSpec:
        return replace(spec, pad_to=self._token_buckets) if -1 in spec.shape else spec

    def _worth_trying(self) -> Sequence[int]:
        """The numbers of rows to try: a shape that runs with one row runs with more, at the same cost for each shape."""
        return self._row_buckets[:1]

    def _cut(self, inputs: Mapping[str, Array]) -> _Cut:
        encodings = self._tokens.encode(INPUT, inputs[INPUT])
        lengths = tuple(len(each) for each in encodings)
        parts = microbatches(lengths, self._token_buckets, self._row_buckets)
        real, padded = padding(parts, lengths)
        before = getattr(self._counted, "elements", (0, 0))
        self._counted.elements = (before[0] + real, before[1] + padded)
        return _Cut(encodings, lengths, parts)

    def _filled(self, cut: _Cut, each: Microbatch, allocate: Callable[[Shapes], dict[str, Array]]) -> dict[str, Array]:
        """The inputs of one microbatch. Rows beyond its own repeat its first, which is valid."""
        arrays = allocate({name: ((each.padded_rows, each.tokens), dtype) for name, dtype in self._types.items()})
        for name, array in arrays.items():
            array.fill(self._tokens.pad_id if name == IDS else 0)
            for place, row in enumerate(each.rows):
                count = cut.lengths[row]
                first = each.tokens - count if self._tokens.left else 0
                array[place, first : first + count] = _of(cut.encodings[row], name)
            array[len(each.rows) :] = array[0]
        return arrays

    def _ones(self, rows: int, tokens: int) -> dict[str, Array]:
        return {name: np.full((rows, tokens), name == MASK, dtype) for name, dtype in self._types.items()}


class PipelinedText(TextBackend):
    """A `PipelinedBackend` over one: all microbatches of a batch are handed over before its turn, as far as they fit."""

    def __init__(self, inner: Backend, tokens: Tokens, token_buckets: Sequence[int], row_buckets: Sequence[int]) -> None:
        super().__init__(inner, tokens, token_buckets, row_buckets)
        self._pipelined = cast(PipelinedBackend, inner)
        self._open = threading.BoundedSemaphore(getattr(inner, "slots", 1))

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`."""
        pending = self.begin(inputs)
        pending.wait()
        return pending.outputs()

    def arrays(self, shapes: Shapes) -> dict[str, Array]:
        """See `PipelinedBackend.arrays`: texts never reach the device, so any memory will do."""
        return plain(shapes)

    def begin(self, inputs: Mapping[str, Array]) -> Batches:
        """See `PipelinedBackend.begin`."""
        cut = self._cut(inputs)
        begin, arrays = self._pipelined.begin, self._pipelined.arrays
        outputs: dict[str, Array] = {}

        def hand_over(each: Microbatch) -> Pending:
            return begin(self._filled(cut, each, arrays))

        def take(each: Microbatch, answers: Mapping[str, Array]) -> None:
            put(outputs, each, answers, len(cut.lengths))

        steps = [(partial(hand_over, each), partial(take, each)) for each in cut.parts]
        return Batches(steps, outputs, self._open)

    def _worth_trying(self) -> Sequence[int]:
        """All: a device may prepare itself for each shape, which must not happen in the middle of traffic."""
        return self._row_buckets


def _nothing(buckets: Sequence[int]) -> None:
    """What a model is got ready with that needs nothing."""


def plain(shapes: Shapes) -> dict[str, Array]:
    """Unfilled arrays in ordinary memory."""
    return {name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()}


def put(outputs: dict[str, Array], each: Microbatch, answers: Mapping[str, Array], rows: int) -> None:
    """Copy the answers of a microbatch to the places of its rows, among `rows` of the batch."""
    for name, array in answers.items():
        if name not in outputs:
            outputs[name] = np.empty((rows, *array.shape[1:]), array.dtype)
        outputs[name][list(each.rows)] = array[: len(each.rows)]


def _of(encoding: Any, name: str) -> list[int]:
    if name == IDS:
        ids: list[int] = encoding.ids
        return ids
    types: list[int] = encoding.type_ids if name == TYPES else [1] * len(encoding)
    return types


def _inner_backend(task: LoadTask) -> str:
    present = [file for file in _MODEL_FILES if (task.folder / file).is_file()]
    if task.settings.text.backend is not None:
        return task.settings.text.backend
    if len(present) != 1:
        seen = " and ".join(present) if present else f"none of {', '.join(_MODEL_FILES)}"
        raise LoadFailed(f"beside {FILE} there is {seen}; set 'backend' in [text] of model.toml or keep exactly one")
    return _MODEL_FILES[present[0]]


def _token_buckets(inner: Signature, stated: Sequence[int], most: int) -> tuple[int, ...]:
    """The token buckets that model and tokenizer leave of what is stated. Raises: LoadFailed for a model of other inputs."""
    names = [spec.name for spec in inner.inputs]
    if not inner.max_batch:
        raise LoadFailed("the model does not batch: its first dimension must be free, or max_batch stated")
    if not {IDS, MASK} <= set(names) <= {IDS, MASK, TYPES}:
        raise LoadFailed(f"the model takes {', '.join(names)}; behind a tokenizer it takes {IDS}, {MASK} and perhaps {TYPES}")
    for spec in inner.inputs:
        if spec.datatype not in _DATATYPES or len(spec.shape) != 1:
            raise LoadFailed(
                f"input '{spec.name}' is {spec.datatype} {list(spec.shape)}, not INT64 or INT32 with one dimension"
            )
    for spec in inner.outputs:
        if -1 in spec.shape:
            raise LoadFailed(f"output '{spec.name}' has shape {list(spec.shape)}: it must be the same for texts of any length")
    fixed = {dim for spec in inner.inputs for dim in spec.shape} - {-1}
    if not fixed:
        return (*(size for size in stated if size < most), most)
    if most > min(fixed):
        raise LoadFailed(f"the model takes {min(fixed)} tokens and the tokenizer gives up to {most}: set max_tokens in [text]")
    return (min(fixed),)
