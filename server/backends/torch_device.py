"""A torch program on a device: batches go through a `pipeline`, executions are graphs where they can be. Floor 2.

The device is a parameter (`device.Device`): nothing here knows CUDA.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.backends.memory import give_back
from server.backends.pipeline import SLOTS, Launched, Line, Pipeline
from server.backends.slabs import Layout, Slab, layout, shapes_of
from server.backends.torch_compile import Compiled
from server.backends.torch_errors import failure
from server.backends.torch_graphs import Graphs
from server.backends.torch_model import TorchModel
from server.backends.torch_prepare import batches, compile_for, samples
from server.core.errors import BackendFailed
from server.core.signature import Signature
from server.core.tensors import Array, Shapes, plain_arrays


class TorchPending:
    """A `Pending` whose errors are the domain's."""

    def __init__(self, launched: Launched, failed: Callable[[Exception], BackendFailed]) -> None:
        self._launched = launched
        self._failed = failed

    def wait(self) -> None:
        """See `Pending.wait`."""
        try:
            self._launched.wait()
        except Exception as error:
            raise self._failed(error) from error

    def outputs(self) -> dict[str, Array]:
        """See `Pending.outputs`."""
        try:
            return self._launched.outputs()
        except Exception as error:
            raise self._failed(error) from error


class DeviceTorchBackend:
    """One program on one device; a `PipelinedBackend`."""

    platform = "pytorch_libtorch"
    slots = SLOTS

    def __init__(self, signature: Signature, model: TorchModel, line: Line, *, graphs: bool) -> None:
        """`graphs`: whether executions shall be captured."""
        self.signature = signature
        self.device = line.device.name
        self._model = model
        self._line = line
        self._pipeline = Pipeline(line)
        self._wants_graphs = graphs
        self._graphs = Graphs(line, model.execute, self._typed)
        self._names = tuple(item.name for item in model.inputs)
        self._output_names = tuple(item.name for item in model.outputs)
        self._types = {item.name: item.type for item in model.inputs}
        self._numeric = all(item.codes is None for item in model.inputs)
        self._notes: tuple[str, ...] = ()
        self._bytes = sum(model.storages().values())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`."""
        pending = self.begin(inputs)
        pending.wait()
        return pending.outputs()

    def arrays(self, shapes: Shapes) -> dict[str, Array]:
        """See `PipelinedBackend.arrays`; texts are looked up first, so what brings them gets ordinary memory."""
        if not self._numeric or shapes.keys() != self._types.keys():
            return plain_arrays(shapes)
        return self._pipeline.slab(tuple((name, *shapes[name]) for name in self._names))

    def begin(self, inputs: Mapping[str, Array]) -> TorchPending:
        """See `PipelinedBackend.begin`."""
        try:
            coded = self._model.coded(inputs)
            slab = inputs if isinstance(inputs, Slab) else self._copied(coded)
            rows = next(iter(coded.values())).shape[0] if self.signature.max_batch else None
            return TorchPending(self._pipeline.begin(slab, self._launch(rows), self._output_names), self._failed)
        except Exception as error:
            raise self._failed(error) from error

    def prepare(self, buckets: Sequence[int]) -> None:
        """Compile for, and capture, batches of these rows, before any is begun. What cannot be is noted, and executed step by
        step. Raises: BackendDead."""
        notes: list[str] = []
        compiled = self._model.call
        if isinstance(compiled, Compiled):
            notes += compile_for(self.signature, self._model, compiled, buckets, self._on_device)
        notes.append(self._capture(buckets))
        self._notes = tuple(notes)

    def _capture(self, buckets: Sequence[int]) -> str:
        if not self._wants_graphs:
            return "no CUDA graphs: cuda_graphs is off"
        found = samples(self.signature, self._model, buckets, self._try)
        if found is None:
            return "no CUDA graphs: sizes are free per request, or no sample of inputs runs"
        by_layout = {layout(shapes_of(coded, self._names)): coded for coded in found}
        why = self._graphs.prepare(tuple(by_layout), lambda arrangement, memory: self._fill(by_layout[arrangement], memory))
        self._try(found[0])  # a device that the attempt has broken says so now
        return f"no CUDA graphs: {why}" if why else f"CUDA graphs for {batches(self.signature, buckets)}"

    def notes(self) -> tuple[str, ...]:
        """How it is executed, for its operator."""
        return self._notes

    def memory_bytes(self) -> int:
        """Bytes of the weights; what executions take beside them only the driver knows."""
        return self._bytes

    def close(self) -> None:
        """Give everything back to the device, and to the system."""
        self._graphs.close()
        del self._graphs, self._pipeline, self._model
        self._line.device.trim()
        give_back()

    def _launch(self, rows: int | None) -> Callable[[Any, Layout], Sequence[Any]]:
        def launch(memory: Any, arrangement: Layout) -> Sequence[Any]:
            results = self._graphs.launch(memory, arrangement)
            for name, tensor in zip(self._output_names, results, strict=True):
                if rows is not None and tuple(tensor.shape[:1]) != (rows,):
                    shape = list(tensor.shape)
                    raise BackendFailed(f"output '{name}' of model '{self.signature.model}' has shape {shape} for {rows} rows")
            return results

        return launch

    def _typed(self, memory: Any, arrangement: Layout) -> list[Any]:
        places = {place.name: place for place in arrangement.places}
        return [
            memory[places[name].first : places[name].last].view(self._types[name]).view(places[name].shape)
            for name in self._names
        ]

    def _copied(self, arrays: Mapping[str, Array]) -> Slab:
        slab = self._pipeline.slab(shapes_of(arrays, self._names))
        for name, array in slab.items():
            array[...] = arrays[name]
        return slab

    def _fill(self, inputs: Mapping[str, Array], memory: Any) -> None:
        slab = self._copied(inputs)
        memory[: slab.arrangement.nbytes].copy_(slab.whole[: slab.arrangement.nbytes])

    def _on_device(self, coded: Mapping[str, Array]) -> list[Any]:
        slab = self._copied(coded)
        memory = self._line.device.bytes(max(slab.arrangement.nbytes, 1))
        memory.copy_(slab.whole)
        return self._typed(memory, slab.arrangement)

    def _try(self, coded: Mapping[str, Array]) -> None:
        """Raises: BackendFailed."""
        try:
            launched = self._pipeline.begin(self._copied(coded), self._launch(None), self._output_names)
            launched.wait()
            launched.outputs()
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> BackendFailed:
        return failure(error, self.signature.model, self.device, self._model.folder)
