"""What a torch program is got ready with before anyone waits for it: inputs that run, of every batch size. Floor 2."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from server.backends.samples import PLAIN_FIRST, sample_inputs, worth_trying
from server.backends.torch_compile import Compiled
from server.backends.torch_model import TorchModel
from server.core.errors import BackendDead, BackendFailed
from server.core.signature import Signature
from server.core.tensors import Array

Coded = dict[str, Array]


def samples(
    signature: Signature, model: TorchModel, buckets: Sequence[int], run: Callable[[Coded], object]
) -> list[Coded] | None:
    """Inputs, as numbers, of as many rows as each of the buckets, in each size that they are padded to; None where no attempt
    runs, or sizes are free per request.

    `run` executes one of them. Raises: BackendDead.
    """
    padded = {spec.name for spec in signature.inputs if spec.pad_to}
    if any(dim.name not in padded for dim in model.free):
        return None
    each = list(product(signature.pad_sizes or (None,), buckets))
    for content, free_dim in worth_trying(signature, PLAIN_FIRST):
        found = [model.coded(sample_inputs(signature, rows, content, free_dim, size=size)) for size, rows in each]
        try:
            run(found[0])
        except BackendDead:
            raise
        except BackendFailed:
            continue
        return found
    return None


def compile_for(
    signature: Signature,
    model: TorchModel,
    compiled: Compiled,
    buckets: Sequence[int],
    tensors: Callable[[Mapping[str, Array]], list[Any]],
) -> tuple[str, ...]:
    """Compile a program for batches of these rows; notes on what came of it. `tensors`: inputs where the program runs."""

    def run(coded: Coded) -> None:
        try:
            model.execute(tensors(coded))
        except BackendFailed:
            raise
        except Exception as error:
            raise BackendFailed(str(error)) from error

    found = samples(signature, model, buckets, run)
    if found is None:
        return ("not compiled: sizes are free per request, or no sample of inputs runs",)
    for coded in found:
        try:
            compiled.prepare(tensors(coded))
        except Exception as error:  # noqa: BLE001 - whatever the compiler dislikes: the program still runs step by step
            return (f"not compiled: {first_line(error)}",)
    return (f"compiled for {batches(signature, buckets)}",)


def batches(signature: Signature, buckets: Sequence[int]) -> str:
    """The batches that a program was prepared for, in words."""
    rows = f"batches of {', '.join(map(str, buckets))}"
    return f"{rows}, in sizes {', '.join(map(str, signature.pad_sizes))}" if signature.pad_sizes else rows


def first_line(error: Exception) -> str:
    """What an error says first; of one that only announces another, that one too."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return (f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0])[:300]
