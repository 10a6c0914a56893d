"""The raw engine: the server's own backend, driven in process, copies included, nothing else. What every ratio divides by.

    python -m bench.gpu.engine --repository DIR --model NAME --seconds S --bodies FILE

Prints one JSON line: for batch sizes up to the largest, the time of one batch by itself (`serial_us`: handed over, executed,
answers in host memory) and of one of many on their way (`busy_us`), and the best rate. Also writes requests for the load
client, with the answers that the model gives to each alone.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, TypeGuard

import numpy as np

from bench.gpu.catalogue import newest_version
from bench.native_client import write_bodies
from protos import grpc_service_pb2 as pb
from server.backends.base import Backend, LoadTask, PipelinedBackend
from server.backends.samples import sample_inputs
from server.backends.warm import warm
from server.core.clock import monotonic_ns
from server.core.settings import ModelSettings, buckets_for
from server.core.signature import Signature
from server.core.tensors import Array
from server.core.versions import VersionKey
from server.lifecycle.loader import MODEL_FILES
from server.optional import backend_factory
from server.registry.source import SETTINGS_FILE, parse_settings

BODIES, _WARM_RUNS, _LEAST_RUNS = 64, 3, 5


def open_version(repository: Path, model: str) -> tuple[Backend, ModelSettings]:
    """The newest version, as a server would open it. Raises: LoadFailed, RegistryError, RuntimeError."""
    folder = newest_version(repository, model)
    file = folder.parent / SETTINGS_FILE
    settings = parse_settings(file.read_bytes()) if file.is_file() else ModelSettings()
    name: str = settings.backend or next(word for there, word in MODEL_FILES.items() if (folder / there).is_file())
    return backend_factory(name)(LoadTask(VersionKey(model, int(folder.name)), folder, settings)), settings


def sizes(buckets: Sequence[int]) -> list[int]:
    """Every bucket, and the first size above each: with both, straight lines show a backend that fills buckets up.

    >>> sizes((1, 2, 4, 8))
    [1, 2, 3, 4, 5, 8]
    """
    return sorted({*buckets, *(low + 1 for low, _ in pairwise(buckets))})


def serial_s(backend: Backend, inputs: Mapping[str, Array], seconds: float) -> float:
    """Median time of one batch with nothing beside it. Filling the arrays is not part of it."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < _LEAST_RUNS or time.perf_counter() < end:
        given = _given(backend, inputs)
        begun = time.perf_counter()
        backend.run(given)
        taken.append(time.perf_counter() - begun)
    return median(taken)


def busy_s(backend: PipelinedBackend, inputs: Mapping[str, Array], seconds: float) -> float:
    """Mean time from one batch to the next while another is always on its way; arrays are filled in the meantime."""
    ahead = backend.begin(_given(backend, inputs))
    begun, count = time.perf_counter(), 0
    while count < _LEAST_RUNS or time.perf_counter() < begun + seconds:
        following = backend.begin(_given(backend, inputs))
        ahead.wait()
        ahead.outputs()
        ahead = following
        count += 1
    took = time.perf_counter() - begun
    ahead.wait()
    ahead.outputs()
    return took / count


def pipelined(backend: Backend) -> TypeGuard[PipelinedBackend]:
    """Whether batches can be handed over before the last one has been executed."""
    return callable(getattr(backend, "begin", None))


def prepared(backend: Backend, buckets: Sequence[int]) -> list[str]:
    """Ready as a server would make it, warm-up included; what the backend says of that. Raises: BackendDead, LoadFailed."""
    getattr(backend, "prepare", _nothing)(buckets)
    warm(backend, buckets, _WARM_RUNS, monotonic_ns)
    return list(getattr(backend, "notes", tuple)())


def _nothing(buckets: Sequence[int]) -> None:
    pass


def _samples(signature: Signature, rows: int) -> dict[str, Array]:
    """Of padded inputs the largest: a device that is kept busy by these is by all."""
    return sample_inputs(signature, rows, "varied", 32, size=signature.pad_sizes[-1] if signature.pad_sizes else None)


def _given(backend: Backend, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    if not pipelined(backend) or any(array.dtype == object for array in inputs.values()):
        return inputs
    arrays = backend.arrays({name: (array.shape, array.dtype) for name, array in inputs.items()})
    for name, array in inputs.items():
        np.copyto(arrays[name], array)
    return arrays


def measure(backend: Backend, buckets: Sequence[int], seconds: float) -> dict[str, Any]:
    """Times at every size within `seconds` in all, and the best rate over the buckets. Units: us, rows per second."""
    asked, rows = sizes(buckets), []
    for size in asked:
        inputs = _samples(backend.signature, size)
        backend.run(_given(backend, inputs))
        alone = serial_s(backend, inputs, seconds / len(asked) / 2)
        # with several on their way none takes longer than by itself; more than that is noise
        among = min(alone, busy_s(backend, inputs, seconds / len(asked) / 2)) if pipelined(backend) else alone
        rows.append({"rows": size, "serial_us": alone * 1e6, "busy_us": among * 1e6, "rate": size / among})
    best = max((row for row in rows if row["rows"] in buckets), key=lambda row: row["rate"])
    return {"rate": best["rate"], "best_rows": best["rows"], "max_batch": max(buckets), "tau": rows}


def bodies(backend: Backend) -> list[tuple[pb.ModelInferRequest, bytes]]:
    """Requests of one row each, with what the model answers to them alone; of BYTES answers nothing is known."""
    signature = backend.signature
    inputs = _samples(signature, BODIES)
    made = []
    for place in range(BODIES if signature.max_batch else 1):
        row = {name: array[place : place + 1] if signature.max_batch else array for name, array in inputs.items()}
        outputs = backend.run(row)
        known = all(outputs[spec.name].dtype != object for spec in signature.outputs)
        answer = b"".join(np.ascontiguousarray(outputs[spec.name]).tobytes() for spec in signature.outputs) if known else b""
        made.append((_message(signature, row), answer))
    return made


def _message(signature: Signature, row: Mapping[str, Array]) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest()
    for spec in signature.inputs:
        array = row[spec.name]
        message.inputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        if array.dtype == object:
            items = array.reshape(-1).tolist()
            message.raw_input_contents.append(b"".join(len(item).to_bytes(4, "little") + item for item in items))
        else:
            message.raw_input_contents.append(np.ascontiguousarray(array).tobytes())
    return message


def main(arguments: list[str]) -> int:
    """Exit status 0, or an exception's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, required=True, help="for all sizes together")
    parser.add_argument("--bodies", type=Path, required=True, help="file of requests to write")
    parser.add_argument("--on", default="", help="what its device must be called, to begin with: cuda, fake")
    chosen = parser.parse_args(arguments)
    backend, settings = open_version(chosen.repository, chosen.model)
    try:
        if not backend.device.startswith(chosen.on):
            raise RuntimeError(f"{chosen.model} is on {backend.device}, where {chosen.on} is to be measured")
        buckets = buckets_for(backend.signature.max_batch, settings.batching)
        notes = prepared(backend, buckets)
        write_bodies(chosen.bodies, bodies(backend))
        facts = {"device": backend.device, "platform": backend.platform, "pipelined": pipelined(backend), "notes": notes}
        print(json.dumps(facts | measure(backend, buckets, chosen.seconds) | {"memory_bytes": backend.memory_bytes()}))
    finally:
        backend.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
